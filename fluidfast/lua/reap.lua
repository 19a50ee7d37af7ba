-- Take back what dead consumers held. Only what two sweeps of one sweeper saw unchanged: a server clock that jumps,
-- or a worker that was late once, costs nothing.
--
-- KEYS  1 the broker's prefix
-- ARGV  1 strikes after which a run is suspect   2 strikes after which it is dead   3 ms after which a silent consumer's
--       inbox is taken   4 header line for the dead   5 if the server's clock went back: lease in ms, else 0
--       6 how many batches are confirmed, then they and the deadline that was seen   then how many consumers are
--       confirmed, then they and the time that was seen
-- returns {flat list of expired batch and deadline, flat list of silent consumer and time, runs taken back, the server's
--          time in ms}
-- called by  RedisTaskBroker.reap
local prefix = KEYS[1]
local leases = prefix .. '-ff:leases'
local consumers = prefix .. '-ff:consumers'
local strikes = prefix .. '-ff:strikes'
local names = {h = prefix .. '-queue-high', m = prefix .. '-queue-medium', l = prefix .. '-queue-low'}
local words = {'high', 'medium', 'low'}
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local taken = 0
local suspects

-- A worker died holding it: it has another strike. Those that are suspect are to be pushed when all are through.
local function take_back(letter, payload)
  local struck = redis.call('HINCRBY', strikes, redis.sha1hex(payload), 1)
  if struck >= tonumber(ARGV[2]) then
    redis.call('LPUSH', prefix .. '-ff:dead', ARGV[4] .. '\n' .. payload)
    redis.call('HDEL', strikes, redis.sha1hex(payload))
  elseif struck >= tonumber(ARGV[1]) then
    suspects[#suspects + 1] = letter .. payload
  else
    redis.call('RPUSH', names[letter], payload)
  end
  taken = taken + 1
end

local function push_suspects()
  for i = #suspects, 1, -1 do -- these wait behind other suspects, so here the first claimed goes first
    redis.call('LPUSH', prefix .. '-ff:suspect', suspects[i])
  end
end

if tonumber(ARGV[5]) > 0 then
  -- By the new time, nobody was seen later than now, and leases end within their length: the living prolong theirs
  -- from there, and those of the dead do not wait until the clock is again where it was.
  local latest = now + tonumber(ARGV[5])
  redis.call('ZREM', leases, '') -- frees, and removes nothing: see renew.lua
  for _, batch in ipairs(redis.call('ZRANGEBYSCORE', leases, '(' .. latest, '+inf')) do
    redis.call('ZADD', leases, latest, batch)
  end
  for _, consumer in ipairs(redis.call('ZRANGEBYSCORE', consumers, '(' .. now, '+inf')) do
    redis.call('ZADD', consumers, now, consumer)
  end
end

local at = 7
for _ = 1, tonumber(ARGV[6]) do
  local batch, seen = ARGV[at], ARGV[at + 1]
  at = at + 2
  local deadline = redis.call('ZSCORE', leases, batch)
  if deadline and tonumber(deadline) == tonumber(seen) and tonumber(deadline) <= now then
    local lease = prefix .. '-ff:lease:' .. batch
    local held = redis.call('HGETALL', lease)
    local order = {}
    for i = 1, #held, 2 do
      order[#order + 1] = {held[i], held[i + 1]}
    end
    -- first, since it frees: so a server that is full lets the script go on
    redis.call('UNLINK', lease)
    redis.call('ZREM', leases, batch)
    suspects = {}
    -- the last claimed goes back first, so that the first claimed is the next to be taken
    table.sort(order, function(a, b)
      return tonumber(string.sub(a[1], 2)) > tonumber(string.sub(b[1], 2))
    end)
    for _, item in ipairs(order) do
      take_back(string.sub(item[1], 1, 1), item[2])
    end
    push_suspects()
  end
end

local confirmed = tonumber(ARGV[at])
at = at + 1
for _ = 1, confirmed do
  local consumer, seen = ARGV[at], ARGV[at + 1]
  at = at + 2
  local last = redis.call('ZSCORE', consumers, consumer)
  if last and tonumber(last) == tonumber(seen) then
    suspects = {}
    for _, word in ipairs(words) do
      local inbox = prefix .. '-ff:inbox:' .. consumer .. ':' .. word
      -- What came last goes back first. It may have been started, and what ends its worker at once is found by that.
      local payload = redis.call('LPOP', inbox)
      while payload do
        take_back(string.sub(word, 1, 1), payload)
        payload = redis.call('LPOP', inbox)
      end
    end
    push_suspects()
    redis.call('ZREM', consumers, consumer)
  end
end

local expired = redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'WITHSCORES', 'LIMIT', 0, 200)
local silent = redis.call('ZRANGEBYSCORE', consumers, '-inf', now - tonumber(ARGV[3]), 'WITHSCORES', 'LIMIT', 0, 200)
return {expired, silent, taken, now}
