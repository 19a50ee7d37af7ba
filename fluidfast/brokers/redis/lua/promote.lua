-- Move what is due from the delayed set to its queues.
--
-- KEYS  1 nothing   2 the delayed runs   3 queue of high   4 of medium   5 of low
-- ARGV  1 at most this many
-- returns {moved, ms until the next one is due, or -1}
-- called by  RedisTaskBroker.promote
local delayed = KEYS[2]
local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
if #first == 0 then -- what an idle consumer asks once a second: it is to cost next to nothing
  return {0, -1}
end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local queues = {h = KEYS[3], m = KEYS[4], l = KEYS[5]}
local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, ARGV[1])
for _, member in ipairs(due) do
  redis.call('ZREM', delayed, member) -- first, since it frees: so a server that is full lets the script go on
  local reply = redis.pcall('LPUSH', queues[string.sub(member, 1, 1)], string.sub(member, 2))
  if type(reply) == 'table' then -- refused: it stays delayed
    redis.call('ZADD', delayed, now, member)
    return reply
  end
end
first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
if #first == 0 then
  return {#due, -1}
end
return {#due, math.max(0, tonumber(first[2]) - now)}
