-- A consumer leaves, or has no room: what its wake-ups moved to its inbox goes back, in order.
--
-- KEYS  1 the broker's prefix
-- ARGV  1 consumer   2 "1": it leaves for good, and no call of it can move anything to an inbox any more
--       3 letters of inboxes to leave alone
-- returns how many went back
-- called by  RedisTaskBroker.farewell, idle_no_more, yielder
local prefix = KEYS[1]
local n = 0
for _, word in ipairs({'high', 'medium', 'low'}) do
  local inbox = prefix .. '-ff:inbox:' .. ARGV[1] .. ':' .. word
  local payload = not string.find(ARGV[3], string.sub(word, 1, 1)) and redis.call('LPOP', inbox)
  while payload do
    local reply = redis.pcall('RPUSH', prefix .. '-queue-' .. word, payload)
    if type(reply) == 'table' then -- refused: it stays where it was
      redis.call('LPUSH', inbox, payload)
      return reply
    end
    n = n + 1
    payload = redis.call('LPOP', inbox)
  end
end
if ARGV[2] == '1' then
  redis.call('ZREM', prefix .. '-ff:consumers', ARGV[1])
  redis.call('HDEL', prefix .. '-ff:consumer-leases', ARGV[1])
end
return n
