-- Take entries out of the page that somebody turned to last: onto a queue again, or away.
--
-- KEYS  1 nothing   2 the list   3 what is kept   4 the cursors   5 queue of high   6 of medium   7 of low
-- ARGV  1 dead, or failed   2 cursor (see sift.lua)   3 number of this call   then triples: the entry, what to do (h, m, l:
--       push to that queue; x: away), the payload to push
-- returns how many were there (an entry that somebody else took meanwhile is not pushed), what it returned before if the
--         reply to it was lost, or false if the cursor is unknown
-- called by  RedisSifter.take
-- kept.lua stands here
local kind = ARGV[1]
local nothing, list, sifts = KEYS[1], KEYS[2], KEYS[4]
local keys = {nothing = nothing, [kind] = list, kept = KEYS[3], sifts = sifts}
local name = kind .. ':' .. ARGV[2]
local queues = {h = KEYS[5], m = KEYS[6], l = KEYS[7]}
local NEAR = 10000 -- entries from an end of the list: removing one further in would take the server too long
local cursor = redis.call('HGET', sifts, name)
if not cursor then return false end
local at = {}
for number in string.gmatch(cursor, '%d+') do at[#at + 1] = tonumber(number) end
if at[5] == tonumber(ARGV[3]) then return at[6] end

local places, empty = {}, {}
local page = redis.call('LRANGE', list, -at[2], -at[1] - 1)
if at[2] == at[1] then page = {} end
for i = 1, #page do
  local place = at[1] + #page - i -- counted from the oldest entry of the list
  if page[i] == '' then
    empty[#empty + 1] = place
  else
    places[page[i]] = places[page[i]] or {}
    table.insert(places[page[i]], place)
  end
end
local taken, bytes = {}, 0
redis.call('HDEL', sifts, '') -- frees, and removes nothing: a full server refuses a first write that does not
try_keep(keys)
redis.call('LPUSH', nothing, '')
redis.call('LSET', nothing, 0, '')
redis.call('LREM', nothing, 0, '')
for i = 4, #ARGV, 3 do
  local found = places[ARGV[i]]
  if found and #found > 0 then
    taken[#taken + 1] = table.remove(found)
    bytes = bytes + #ARGV[i]
    if queues[ARGV[i + 1]] then
      redis.call('LPUSH', queues[ARGV[i + 1]], ARGV[i + 2])
    end
  end
end
local count = #taken
at[5], at[6] = tonumber(ARGV[3]), count
redis.call('HSET', sifts, name, table.concat(at, ' '))
redis.call('PEXPIRE', sifts, 3600000)
if count == 0 then return 0 end

local length = redis.call('LLEN', list)
local gone = noted(keys, kind, 'gone') or 0
local held = bytes_of(keys, kind, 0)
table.sort(taken)
local from_oldest, from_newest = taken[count] + 1, length - taken[1]
if math.min(from_oldest, from_newest) > NEAR then
  for _, place in ipairs(taken) do redis.call('LSET', list, -place - 1, '') end
  gone = gone + count
else
  if math.min(at[2], length - at[1]) <= NEAR then
    for i = 1, math.min(#empty, 100) do -- those of this page go along
      taken[#taken + 1] = empty[i]
      gone = gone - 1
    end
  end
  local mark = '\0' .. ARGV[2]
  for _, place in ipairs(taken) do redis.call('LSET', list, -place - 1, mark) end
  redis.call('LREM', list, from_oldest <= from_newest and -#taken or #taken, mark)
  shift(keys, kind, function(n)
    local below = 0
    for _, place in ipairs(taken) do
      if place < n then below = below + 1 end
    end
    return below
  end)
end
note(keys, kind, held - bytes, gone, 0)
return count
