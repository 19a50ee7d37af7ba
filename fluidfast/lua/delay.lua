-- Keep runs until they are due, by the server's clock.
--
-- KEYS  1 the broker's prefix
-- ARGV  pairs: ms from now, then priority letter (h, m, l) followed by the payload
-- returns how many are new (the same run again only moves its due time)
-- called by  RedisTaskBroker.delay
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local added = 0
for i = 1, #ARGV, 2 do
  added = added + redis.call('ZADD', KEYS[1] .. '-ff:delayed', now + tonumber(ARGV[i]), ARGV[i + 1])
end
return added
