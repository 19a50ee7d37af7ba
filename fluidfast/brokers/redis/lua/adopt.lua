-- Put a run that was moved to a consumer's inbox, and is running already, under a lease.
--
-- KEYS  1 the broker's prefix
-- ARGV  1 consumer   2 batch, never used before: it is the fence   3 lease in ms   4 letter of the queue   5 payload
-- returns nothing. If it is not in the inbox any more it is another consumer's, and whatever follows about the batch is refused
-- called by  Inboxes.adopt
local prefix = KEYS[1]
local names = {h = 'high', m = 'medium', l = 'low'}
local lease = prefix .. '-ff:lease:' .. ARGV[2]
if redis.call('EXISTS', lease) == 1 then return end -- the reply to this very call was lost
local inbox = prefix .. '-ff:inbox:' .. ARGV[1] .. ':' .. names[ARGV[4]]
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
  if payload == ARGV[5] and not found then
    found = true
  else
    others[#others + 1] = payload
  end
  payload = redis.call('LPOP', inbox)
end
for _, other in ipairs(others) do keep(other) end
if not found then return end
local deadline = now[1] * 1000 + math.floor(now[2] / 1000) + tonumber(ARGV[3])
local reply = redis.pcall('ZADD', prefix .. '-ff:leases', deadline, ARGV[2])
if not refused(reply) then
  reply = redis.pcall('HSET', lease, ARGV[4] .. '1', ARGV[5])
  if refused(reply) then redis.pcall('ZREM', prefix .. '-ff:leases', ARGV[2]) end
end
if refused(reply) then
  keep(ARGV[5])
  return reply
end
