-- A consumer is alive: its leases and slots run on.
--
-- KEYS  1 the broker's prefix
-- ARGV  1 consumer   2 lease in ms   3 how many batches, then they   then pairs: task, slot held (FENCE RUN-ID, see
--       acquire.lua)
-- returns the batches that hold no lease any more
-- called by  Inboxes.renew, RedisTaskBroker.renewer
local prefix = KEYS[1]
local leases = prefix .. '-ff:leases'
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local deadline = now + tonumber(ARGV[2])
-- A server that is full refuses a script at its first write, if that could grow: this one frees, and removes nothing.
redis.call('ZREM', leases, '')
redis.call('ZADD', prefix .. '-ff:consumers', deadline, ARGV[1])
local lost = {}
local n = tonumber(ARGV[3])
for i = 4, 3 + n do
  if redis.call('ZSCORE', leases, ARGV[i]) then
    redis.call('ZADD', leases, 'XX', 'GT', deadline, ARGV[i])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
for i = 4 + n, #ARGV, 2 do
  redis.call('ZADD', prefix .. '-ff:slots:' .. ARGV[i], 'XX', 'GT', deadline, ARGV[i + 1])
  local id = string.match(ARGV[i + 1], '^%S+ (.*)$') or ARGV[i + 1]
  redis.call('PEXPIRE', prefix .. '-task-run-' .. ARGV[i] .. '-' .. id, ARGV[2]) -- aio-fluid sees it for as long
end
redis.pcall('HSET', prefix .. '-ff:consumer-leases', ARGV[1], ARGV[2]) -- no reason for a renewal to fail
return lost
