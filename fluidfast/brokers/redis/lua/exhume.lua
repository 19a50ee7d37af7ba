-- Take entries out of the page that somebody turned to last: onto a queue again, or away.
--
-- KEYS  1 the broker's prefix
-- ARGV  1 dead, or failed   2 cursor (see sift.lua)   3 number of this call   then triples: the entry, what to do (h, m, l:
--       push to that queue; x: away), the payload to push
-- returns how many were there (an entry that somebody else took meanwhile is not pushed), what it returned before if the
--         reply to it was lost, or false if the cursor is unknown
-- called by  RedisSifter, with kept.lua
-- kept.lua stands here
local prefix = KEYS[1]
local kind = ARGV[1]
local list, sifts = prefix .. '-ff:' .. kind, prefix .. '-ff:sifts'
local name = kind .. ':' .. ARGV[2]
local names = {h = prefix .. '-queue-high', m = prefix .. '-queue-medium', l = prefix .. '-queue-low'}
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
try_keep(prefix)
redis.call('LPUSH', prefix .. '-ff:nothing', '')
redis.call('LSET', prefix .. '-ff:nothing', 0, '')
redis.call('LREM', prefix .. '-ff:nothing', 0, '')
for i = 4, #ARGV, 3 do
  local found = places[ARGV[i]]
  if found and #found > 0 then
    taken[#taken + 1] = table.remove(found)
    bytes = bytes + #ARGV[i]
    if names[ARGV[i + 1]] then
      redis.call('LPUSH', names[ARGV[i + 1]], ARGV[i + 2])
    end
  end
end
local count = #taken
at[5], at[6] = tonumber(ARGV[3]), count
redis.call('HSET', sifts, name, table.concat(at, ' '))
redis.call('PEXPIRE', sifts, 3600000)
if count == 0 then return 0 end

local length = redis.call('LLEN', list)
local gone = noted(prefix, kind, 'gone') or 0
local held = bytes_of(prefix, kind, 0)
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
  shift(prefix, kind, function(n)
    local below = 0
    for _, place in ipairs(taken) do
      if place < n then below = below + 1 end
    end
    return below
  end)
end
note(prefix, kind, held - bytes, gone, 0)
return count
