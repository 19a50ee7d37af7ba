-- Push a batch of runs, once, however often it is sent.
--
-- KEYS  1 the broker's prefix, "{NAME}"
-- ARGV  1 producer id   2 sequence number of the batch   3 ms to remember the producer
--       4 sequence number of the batch that was sent before it and is not confirmed, or 0
--       5, 6, 7 how many payloads go to high, medium, low   8... the payloads, in that order
-- returns {1, runs waiting} or {0, runs waiting} if this sequence number was seen before (nothing was pushed); the
--         error BEHIND if the batch before it was not pushed: were this one, that one would be taken for seen
-- called by  RedisChannel, RedisTaskBroker.push_once
local prefix = KEYS[1]
local mark = prefix .. '-ff:producer:' .. ARGV[1]
local names = {prefix .. '-queue-high', prefix .. '-queue-medium', prefix .. '-queue-low'}
local pushed = 1
-- counted first: a key of the wrong type is found before anything is written
local waiting = redis.call('LLEN', names[1]) + redis.call('LLEN', names[2]) + redis.call('LLEN', names[3])
local last = redis.call('GET', mark)
if last and tonumber(last) >= tonumber(ARGV[2]) then
  pushed = 0
  redis.call('PEXPIRE', mark, ARGV[3]) -- a write, so that WAIT behind it waits for what the first sending wrote
elseif tonumber(last or 0) < tonumber(ARGV[4]) then
  return redis.error_reply('BEHIND a batch that was refused')
else
  -- first, because on a server that is full it is refused, and then nothing has been pushed
  redis.call('SET', mark, ARGV[2], 'PX', ARGV[3])
  local at = 8
  for p = 1, 3 do
    local left = tonumber(ARGV[4 + p])
    waiting = waiting + left
    while left > 0 do
      local n = math.min(left, 4000) -- Lua's stack takes just under 8000 values
      local reply = redis.pcall('LPUSH', names[p], unpack(ARGV, at, at + n - 1))
      if type(reply) == 'table' then
        -- refused, as the first push is if the user lacks the right: sent again, the batch must not count as seen
        if last then
          redis.call('SET', mark, last, 'PX', ARGV[3])
        else
          redis.call('DEL', mark)
        end
        return reply
      end
      at = at + n
      left = left - n
    end
  end
end
return {pushed, waiting}
