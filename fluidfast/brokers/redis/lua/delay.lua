-- Keep runs until they are due, by the server's clock; once, however often it is sent.
--
-- KEYS  1 nothing   2 the mark of this call   3 the delayed runs
-- ARGV  1 ms to remember this call   then pairs: ms from now, then priority letter (h, m, l) followed by the payload
-- returns how many are new (the same run again only moves its due time; 0 if this call was seen before: what it delayed
--         may be on a queue by now)
-- called by  RedisTaskBroker.delay
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local added = 0
-- first, because on a server that is full it is refused, and then nothing is delayed
if not redis.call('SET', KEYS[2], 1, 'NX', 'PX', ARGV[1]) then
  redis.call('PEXPIRE', KEYS[2], ARGV[1]) -- a write for WAIT: see enqueue.lua
  return 0
end
for i = 2, #ARGV, 2 do
  local reply = redis.pcall('ZADD', KEYS[3], now + tonumber(ARGV[i]), ARGV[i + 1])
  if type(reply) == 'table' then -- refused, as the first of them: sent again, it must not count as seen
    redis.call('DEL', KEYS[2])
    return reply
  end
  added = added + reply
end
return added
