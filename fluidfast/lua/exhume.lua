-- Take entries out of the dead list: onto a queue again, or away.
--
-- KEYS  1 the broker's prefix
-- ARGV  triples: the entry, what to do (h, m, l: push to that queue; x: away), the payload to push
-- returns how many were there (an entry that somebody else took meanwhile is not pushed)
-- called by  RedisTaskBroker.exhume
local prefix = KEYS[1]
local names = {h = prefix .. '-queue-high', m = prefix .. '-queue-medium', l = prefix .. '-queue-low'}
local n = 0
for i = 1, #ARGV, 3 do
  -- from the old end: entries are taken oldest first
  if redis.call('LREM', prefix .. '-ff:dead', -1, ARGV[i]) == 1 then
    if names[ARGV[i + 1]] then
      redis.call('LPUSH', names[ARGV[i + 1]], ARGV[i + 2])
    end
    n = n + 1
  end
end
return n
