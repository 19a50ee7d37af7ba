-- Give back runs that were claimed and not started, to the end they came from, in their order.
--
-- KEYS  1 the broker's prefix
-- ARGV  1 batch   2... fields, in the order in which they were claimed
-- returns how many went back (0 if the lease is gone)
-- called by  RedisTaskBroker.release
local prefix = KEYS[1]
local lease = prefix .. '-ff:lease:' .. ARGV[1]
local names = {h = prefix .. '-queue-high', m = prefix .. '-queue-medium', l = prefix .. '-queue-low'}
local n = 0
for i = #ARGV, 2, -1 do
  local payload = redis.call('HGET', lease, ARGV[i])
  if payload then
    redis.call('HDEL', lease, ARGV[i]) -- first, since it frees: so a server that is full lets the script go on
    redis.call('RPUSH', names[string.sub(ARGV[i], 1, 1)], payload)
    n = n + 1
  end
end
if redis.call('EXISTS', lease) == 0 then
  redis.call('ZREM', prefix .. '-ff:leases', ARGV[1])
end
return n
