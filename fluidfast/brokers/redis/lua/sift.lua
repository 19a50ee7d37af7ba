-- Turn the page of somebody who goes through a list of what gave up, oldest first. Nothing that is removed meanwhile, by
-- whomever, makes them miss an entry or see one twice; entries that came after the first call are not theirs.
--
-- KEYS  1 nothing   2 the list   3 the cursors
-- ARGV  1 dead, or failed   2 cursor, never used before   3 number of the page (0: begin, -1: end)
--       4 at most this many entries   5 at most this many bytes (one entry is always given)
-- returns the entries, or false if the cursor is unknown (nobody used it for an hour). The same page again if the reply to
--         it was lost
-- called by  RedisSifter.__aenter__, RedisSifter.__aexit__, RedisSifter.turn
local list, sifts = KEYS[2], KEYS[3]
local name = ARGV[1] .. ':' .. ARGV[2]
local page = tonumber(ARGV[3])
if page < 0 then
  redis.call('HDEL', sifts, name)
  return {}
end
local cursor = redis.call('HGET', sifts, name)
if page == 0 then
  if not cursor then
    redis.call('HDEL', sifts, '') -- frees, and removes nothing: a full server refuses a first write that does not
    -- where the page begins and ends, where the list ends; page, number of the last removal, how many it removed
    redis.call('HSET', sifts, name, '0 0 ' .. redis.call('LLEN', list) .. ' 0 0 0')
    redis.call('PEXPIRE', sifts, 3600000)
  end
  return {}
end
if not cursor then return false end
local at = {}
for number in string.gmatch(cursor, '%d+') do at[#at + 1] = tonumber(number) end
local from, last = at[2], at[3]
local most = tonumber(ARGV[4])
if at[4] == page then -- the reply was lost
  from, last = at[1], at[2]
end
local entries, bytes, full = {}, 0, false
while not full and from + #entries < last and #entries < most do
  local first = from + #entries
  local step = math.min(#entries == 0 and 1 or 8, most - #entries, last - first) -- however large each of them is
  local got = redis.call('LRANGE', list, -first - step, -first - 1)
  for i = #got, 1, -1 do
    bytes = bytes + #got[i]
    if bytes > tonumber(ARGV[5]) and #entries > 0 then
      full = true
      break
    end
    entries[#entries + 1] = got[i]
  end
  if #got < step then break end
end
redis.call('HDEL', sifts, '')
redis.call('HSET', sifts, name, table.concat({from, from + #entries, at[3], page, at[5], at[6]}, ' '))
redis.call('PEXPIRE', sifts, 3600000)
return entries
