-- Give back runs that were claimed and not started, to the end they came from, in their order. A suspect stays one: on
-- a queue it would run beside others, which would be blamed with it.
--
-- KEYS  1 nothing   2 the lease of the batch   3 the leases   4 the strikes   5 the suspects   6 queue of high
--       7 of medium   8 of low
-- ARGV  1 batch   2 strikes after which a run is suspect   3... fields, in the order in which they were claimed
-- returns how many went back (0 if the lease is gone)
-- called by  RedisTaskBroker.release
local lease, strikes = KEYS[2], KEYS[4]
local queues = {h = KEYS[6], m = KEYS[7], l = KEYS[8]}
local struck = redis.call('EXISTS', strikes) == 1
local n = 0
for i = #ARGV, 3, -1 do
  local payload = redis.call('HGET', lease, ARGV[i])
  if payload then
    redis.call('HDEL', lease, ARGV[i]) -- first, since it frees: so a server that is full lets the script go on
    local letter = string.sub(ARGV[i], 1, 1)
    local reply
    if struck and tonumber(redis.call('HGET', strikes, redis.sha1hex(payload)) or 0) >= tonumber(ARGV[2]) then
      reply = redis.pcall('RPUSH', KEYS[5], letter .. payload)
    else
      reply = redis.pcall('RPUSH', queues[letter], payload)
    end
    if type(reply) == 'table' then -- refused: it stays under the lease
      redis.call('HSET', lease, ARGV[i], payload)
      return reply
    end
    n = n + 1
  end
end
if redis.call('EXISTS', lease) == 0 then
  redis.call('ZREM', KEYS[3], ARGV[1])
end
return n
