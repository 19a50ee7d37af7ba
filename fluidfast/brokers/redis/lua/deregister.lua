-- A consumer leaves, or has no room: what its wake-ups moved to its inbox goes back, in order.
--
-- KEYS  1 nothing   2 the consumers   3 their leases in ms   4 inbox of high   5 of medium   6 of low   7 queue of high
--       8 of medium   9 of low
-- ARGV  1 consumer   2 "1": it leaves for good, and no call of it can move anything to an inbox any more
--       3 letters of inboxes to leave alone
-- returns how many went back
-- called by  RedisTaskBroker.deregister, RedisTaskBroker.stop_reserving, RedisTaskBroker.releaser
local n = 0
for i, letter in ipairs({'h', 'm', 'l'}) do
  local inbox = KEYS[3 + i]
  local payload = not string.find(ARGV[3], letter) and redis.call('LPOP', inbox)
  while payload do
    local reply = redis.pcall('RPUSH', KEYS[6 + i], payload)
    if type(reply) == 'table' then -- refused: it stays where it was
      redis.call('LPUSH', inbox, payload)
      return reply
    end
    n = n + 1
    payload = redis.call('LPOP', inbox)
  end
end
if ARGV[2] == '1' then
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('HDEL', KEYS[3], ARGV[1])
end
return n
