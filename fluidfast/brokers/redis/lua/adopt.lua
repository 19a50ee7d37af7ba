-- Put a run that was moved to a consumer's inbox, and is running already, under a lease.
--
-- KEYS  1 nothing   2 the lease of the batch   3 the leases   4 the inbox
-- ARGV  1 batch, never used before: it is the fence   2 lease in ms   3 letter of the queue   4 payload
-- returns nothing. If it is not in the inbox any more it is another consumer's, and whatever follows about the
--         batch is refused
-- called by  Inboxes._adopt
local lease, leases, inbox = KEYS[2], KEYS[3], KEYS[4]
if redis.call('EXISTS', lease) == 1 then return end -- the reply to this very call was lost
local found = false
local others = {}
-- A refused command (a right that was taken away, say) undoes the steps before it: the run stays in the inbox.
local function refused(reply)
  return type(reply) == 'table' and reply.err
end
local function keep(payload)
  if refused(redis.pcall('RPUSH', inbox, payload)) then redis.call('LPUSH', inbox, payload) end
end
local now = redis.call('TIME')
local payload = redis.call('LPOP', inbox)
while payload do
  if payload == ARGV[4] and not found then
    found = true
  else
    others[#others + 1] = payload
  end
  payload = redis.call('LPOP', inbox)
end
for _, other in ipairs(others) do keep(other) end
if not found then return end
local deadline = now[1] * 1000 + math.floor(now[2] / 1000) + tonumber(ARGV[2])
local reply = redis.pcall('ZADD', leases, deadline, ARGV[1])
if not refused(reply) then
  reply = redis.pcall('HSET', lease, ARGV[3] .. '1', ARGV[4])
  if refused(reply) then redis.pcall('ZREM', leases, ARGV[1]) end
end
if refused(reply) then
  keep(ARGV[4])
  return reply
end
