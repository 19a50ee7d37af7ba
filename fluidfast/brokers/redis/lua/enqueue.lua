-- Push a batch of runs, once, however often it is sent.
--
-- KEYS  1 nothing   2 the producer's mark   3 queue of high   4 of medium   5 of low
-- ARGV  1 sequence number of the batch   2 ms to remember the producer
--       3 sequence number of the batch that was sent before it and is not confirmed, or 0
--       4, 5, 6 how many payloads go to high, medium, low   7... the payloads, in that order
-- returns {1, runs waiting} or {0, runs waiting} if this sequence number was seen before (nothing was pushed); the
--         error BEHIND if the batch before it was not pushed: were this one, that one would be taken for seen
-- called by  RedisChannel._send, RedisTaskBroker.push_once
local mark = KEYS[2]
local pushed = 1
-- counted first: a key of the wrong type is found before anything is written
local waiting = redis.call('LLEN', KEYS[3]) + redis.call('LLEN', KEYS[4]) + redis.call('LLEN', KEYS[5])
local last = redis.call('GET', mark)
if last and tonumber(last) >= tonumber(ARGV[1]) then
  pushed = 0
  redis.call('PEXPIRE', mark, ARGV[2]) -- a write, so that WAIT behind it waits for what the first sending wrote
elseif tonumber(last or 0) < tonumber(ARGV[3]) then
  return redis.error_reply('BEHIND a batch that was refused')
else
  -- first, because on a server that is full it is refused, and then nothing has been pushed
  redis.call('SET', mark, ARGV[1], 'PX', ARGV[2])
  local at = 7
  for p = 1, 3 do
    local n = tonumber(ARGV[3 + p])
    if n > 0 then
      local reply = redis.pcall('LPUSH', KEYS[2 + p], unpack(ARGV, at, at + n - 1))
      if type(reply) == 'table' then
        -- refused, as the first push is if the user lacks the right: sent again, the batch must not count as seen
        if last then
          redis.call('SET', mark, last, 'PX', ARGV[2])
        else
          redis.call('DEL', mark)
        end
        return reply
      end
      at = at + n
      waiting = waiting + n
    end
  end
end
return {pushed, waiting}
