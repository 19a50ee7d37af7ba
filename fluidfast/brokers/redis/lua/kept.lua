-- The bounded lists of runs that gave up ("dead") and of runs that failed without a retry ("failed"): the part that the
-- scripts share. It is no script of its own: scripts.py puts it where a script says that it stands. Its functions get a
-- table of keys: nothing, dead or failed or both (the lists), kept, sifts.
--
-- ff:KIND    list of entries, newest first; an empty one stands where one was taken out of the middle
-- ff:kept    hash: KIND:bytes of the entries, KIND:gone (how many are empty), KIND:trimmed (how many were dropped so far);
--            forgotten a year after the last change
-- ff:sifts   hash: KIND:cursor -> numbers, see sift.lua; the first three count entries from the oldest

-- Move the cursors of a list: below(n) says how many of its n oldest entries have been removed.
local function shift(keys, kind, below)
  local sifts = keys.sifts
  local all = redis.call('HGETALL', sifts)
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, #kind + 1) == kind .. ':' then
      local numbers = {}
      for number in string.gmatch(all[i + 1], '%d+') do numbers[#numbers + 1] = tonumber(number) end
      for j = 1, 3 do numbers[j] = numbers[j] - below(numbers[j]) end
      redis.call('HSET', sifts, all[i], table.concat(numbers, ' '))
    end
  end
end

local function noted(keys, kind, what)
  return tonumber(redis.call('HGET', keys.kept, kind .. ':' .. what))
end

-- The bytes of a list's entries that are older than the newest so many. One that an older release wrote is estimated.
local function bytes_of(keys, kind, newest)
  local known = noted(keys, kind, 'bytes')
  if known then return known end
  local list = keys[kind]
  local sampled, size = 0, 0
  for _, place in ipairs({newest, newest + 1, -2, -1}) do
    local entry = redis.call('LINDEX', list, place)
    if entry then sampled, size = sampled + 1, size + #entry end
  end
  return sampled > 0 and math.floor((redis.call('LLEN', list) - newest) * size / sampled) or 0
end

-- Note what a list holds now; nothing is noted of an empty one but how many entries it has dropped.
local function note(keys, kind, bytes, gone, trimmed)
  local kept = keys.kept
  if redis.call('EXISTS', keys[kind]) == 0 then
    redis.call('HDEL', kept, kind .. ':bytes', kind .. ':gone')
  else
    redis.call('HSET', kept, kind .. ':bytes', math.max(0, bytes), kind .. ':gone', math.max(0, gone))
  end
  if trimmed > 0 then redis.call('HINCRBY', kept, kind .. ':trimmed', trimmed) end
  redis.call('PEXPIRE', kept, 31536000000)
end

-- Whether the server is at its maxmemory. It asks before the first write of a script only, so this has to be that.
local function is_full(keys)
  local reply = redis.pcall('ZADD', keys.nothing, 'XX', 0, '')
  return type(reply) == 'table' and reply.err and string.find(reply.err, 'OOM', 1, true) ~= nil
end

-- A right for "keep" that the user lacks is found here, where nothing is taken and nothing is kept yet. "keep" and this
-- come behind a write that frees.
local function try_keep(keys)
  local nothing = keys.nothing
  redis.call('HSET', nothing, '', '')
  redis.call('HINCRBY', nothing, '1', 1)
  redis.call('HDEL', nothing, '', '1')
  redis.call('LPUSH', nothing, '')
  redis.call('RPOP', nothing)
  redis.call('PEXPIRE', nothing, 1)
  redis.call('HGETALL', nothing)
  redis.call('LINDEX', nothing, 0)
  redis.call('LLEN', nothing)
  redis.call('EXISTS', nothing)
end

-- Push entries, at most as many and as large as given (0: none), and drop the oldest. A call drops about as much as it
-- pushes and a slice more, so that a list that is far too long shrinks without holding up the server. full: the server is,
-- and new entries take the place of older ones.
local function keep(keys, kind, entries, most, most_bytes, full)
  if #entries == 0 then return end
  local list = keys[kind]
  local pushed = 0
  for _, entry in ipairs(entries) do
    redis.call('LPUSH', list, entry)
    pushed = pushed + #entry
  end
  local length = redis.call('LLEN', list)
  local bytes, gone = pushed, 0
  if length > #entries then -- else there was no list, whatever is noted of it
    bytes = pushed + bytes_of(keys, kind, #entries)
    gone = noted(keys, kind, 'gone') or 0
  end
  if full then most_bytes = math.min(most_bytes, math.max(bytes - 2 * pushed, pushed)) end
  local out, trimmed, freed = 0, 0, 0
  while (length - out - gone > most or length - out > 2 * most or bytes > most_bytes)
      and out < #entries + 1000 and freed < pushed + 8388608 do
    local old = redis.call('RPOP', list)
    if not old then break end
    out = out + 1
    if old == '' then
      gone = gone - 1
    else
      trimmed, bytes, freed = trimmed + 1, bytes - #old, freed + #old
    end
  end
  note(keys, kind, bytes, gone, trimmed)
  if out > 0 then shift(keys, kind, function(n) return math.min(n, out) end) end
end

