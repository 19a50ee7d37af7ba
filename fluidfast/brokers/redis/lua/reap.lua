-- Take back what dead consumers held. Only what two sweeps of one sweeper saw unchanged: a server clock that jumps,
-- or a worker that was late once, costs nothing. Each batch and each consumer is judged by its own lease, whatever that
-- of the sweeper is: a batch's name ends with "-" and its lease in ms, a consumer's stands in ff:consumer-leases.
--
-- KEYS  1 nothing   2 the leases   3 the consumers   4 their leases in ms   5 the strikes   6 the suspects   7 the dead
--       8 what is kept   9 the cursors   10 queue of high   11 of medium   12 of low   then the lease of each confirmed
--       batch, then for each confirmed consumer its inboxes: high, medium, low
-- ARGV  1 strikes after which a run is suspect   2 strikes after which it is dead   3 the sweeper's lease in ms, for
--       what says none of its own   4 header line for the dead   5 "1" if the server's clock went back
--       6 how many batches are confirmed, then they and the deadline that was seen   then how many consumers are
--       confirmed, then they and the deadline that was seen   at the end: at most how many dead, and bytes of them, are kept
-- returns {flat list of expired batch, deadline and lease in ms, the same of silent consumers, runs taken back, the
--          server's time in ms, lease in ms of the batch or consumer whose deadline is the first of all, or 0}
-- called by  RedisTaskBroker.reap
-- kept.lua stands here
local nothing, leases, consumers, consumer_leases, strikes, suspect = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local keys = {nothing = nothing, dead = KEYS[7], kept = KEYS[8], sifts = KEYS[9]}
local queues = {h = KEYS[10], m = KEYS[11], l = KEYS[12]}
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local taken = 0
local suspects

-- A worker died holding it: it has another strike. Those that are suspect are to be pushed when all are through.
local function take_back(letter, payload)
  local struck = redis.call('HINCRBY', strikes, redis.sha1hex(payload), 1)
  if struck >= tonumber(ARGV[2]) then
    keep(keys, 'dead', {ARGV[4] .. '\n' .. payload}, tonumber(ARGV[#ARGV - 1]), tonumber(ARGV[#ARGV]))
    redis.call('HDEL', strikes, redis.sha1hex(payload))
  elseif struck >= tonumber(ARGV[1]) then
    suspects[#suspects + 1] = letter .. payload
  else
    redis.call('RPUSH', queues[letter], payload)
  end
  taken = taken + 1
end

local function push_suspects()
  for i = #suspects, 1, -1 do -- these wait behind other suspects, so here the first claimed goes first
    redis.call('LPUSH', suspect, suspects[i])
  end
end

local function lease_of(key, name)
  local own
  if key == leases then
    own = string.match(name, '%-(%d+)$')
  else
    own = redis.call('HGET', consumer_leases, name)
  end
  return tonumber(own or ARGV[3])
end

-- A right that the user lacks, or a key of the wrong type, is found here, where nothing is taken yet.
local function try_all()
  redis.call('ZREM', leases, '') -- frees, and removes nothing: see renew.lua
  redis.call('ZREM', consumers, '')
  redis.call('UNLINK', nothing)
  redis.call('LPOP', nothing)
  redis.call('RPOP', nothing)
  redis.call('HDEL', consumer_leases, '')
  redis.call('HDEL', strikes, '')
  redis.call('HINCRBY', strikes, '', 1)
  redis.call('HDEL', strikes, '')
  for _, queue in pairs(queues) do
    redis.call('RPUSH', queue, '')
    redis.call('RPOP', queue)
  end
  for _, list in ipairs({keys.dead, suspect}) do
    redis.call('LPUSH', list, '')
    redis.call('LPOP', list)
  end
  try_keep(keys)
end

if ARGV[5] == '1' then
  -- By the new time, leases end within their length: the living prolong theirs from there, and those of the dead do not
  -- wait until the clock is again where it was.
  redis.call('ZREM', leases, '')
  for _, key in ipairs({leases, consumers}) do
    for _, name in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. now, '+inf')) do
      local latest = now + lease_of(key, name)
      if tonumber(redis.call('ZSCORE', key, name)) > latest then redis.call('ZADD', key, latest, name) end
    end
  end
end

local at, key = 7, 13
if tonumber(ARGV[6]) > 0 or tonumber(ARGV[7 + 2 * tonumber(ARGV[6])]) > 0 then try_all() end
for _ = 1, tonumber(ARGV[6]) do
  local batch, seen = ARGV[at], ARGV[at + 1]
  local lease = KEYS[key]
  at, key = at + 2, key + 1
  local deadline = redis.call('ZSCORE', leases, batch)
  if deadline and tonumber(deadline) == tonumber(seen) and tonumber(deadline) <= now then
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
  local first = key
  at, key = at + 2, key + 3
  local last = redis.call('ZSCORE', consumers, consumer)
  if last and tonumber(last) == tonumber(seen) and tonumber(last) <= now then
    suspects = {}
    for i, letter in ipairs({'h', 'm', 'l'}) do
      local inbox = KEYS[first + i - 1]
      -- The last run goes back first. It may have been started: so a run that ends its worker at once is found.
      local payload = redis.call('LPOP', inbox)
      while payload do
        take_back(letter, payload)
        payload = redis.call('LPOP', inbox)
      end
    end
    push_suspects()
    redis.call('ZREM', consumers, consumer)
    redis.call('HDEL', consumer_leases, consumer)
  end
end

local function ended(key)
  local found = redis.call('ZRANGEBYSCORE', key, '-inf', now, 'WITHSCORES', 'LIMIT', 0, 200)
  local seen = {}
  for i = 1, #found, 2 do
    seen[#seen + 1] = found[i]
    seen[#seen + 1] = found[i + 1]
    seen[#seen + 1] = lease_of(key, found[i])
  end
  return seen
end

local first, shortest = math.huge, 0
for _, key in ipairs({leases, consumers}) do
  local found = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  if found[2] and tonumber(found[2]) < first then
    first, shortest = tonumber(found[2]), lease_of(key, found[1])
  end
end
return {ended(leases), ended(consumers), taken, now, shortest}
