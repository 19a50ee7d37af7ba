-- A consumer is alive: its leases and slots run on.
--
-- KEYS  1 nothing   2 the leases   3 the consumers   4 their leases in ms   then for each slot a pair: the slots of its
--       task, aio-fluid's key of its run
-- ARGV  1 consumer   2 lease in ms   3 how many batches, then they   then the slots (FENCE RUN-ID, see acquire.lua)
-- returns the batches that hold no lease any more
-- called by  Inboxes.renew, RedisTaskBroker.renewer
local leases = KEYS[2]
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local deadline = now + tonumber(ARGV[2])
-- A server that is full refuses a script at its first write, if that could grow: this one frees, and removes nothing.
redis.call('ZREM', leases, '')
redis.call('ZADD', KEYS[3], deadline, ARGV[1])
local lost = {}
local n = tonumber(ARGV[3])
for i = 4, 3 + n do
  if redis.call('ZSCORE', leases, ARGV[i]) then
    redis.call('ZADD', leases, 'XX', 'GT', deadline, ARGV[i])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
local key = 5
for i = 4 + n, #ARGV do
  redis.call('ZADD', KEYS[key], 'XX', 'GT', deadline, ARGV[i])
  redis.call('PEXPIRE', KEYS[key + 1], ARGV[2]) -- aio-fluid sees it for as long
  key = key + 2
end
redis.pcall('HSET', KEYS[4], ARGV[1], ARGV[2]) -- no reason for a renewal to fail
return lost
