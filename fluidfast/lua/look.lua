-- Read a page of what gave up.
--
-- KEYS  1 the broker's prefix
-- ARGV  1 dead, or failed   2 how many entries to pass over   3 at most this many entries   4 at most this many bytes (one
--       entry is always given)   5 1: oldest first, 0: newest first
-- returns the entries; an empty one stands where one was taken out
-- called by  RedisTaskBroker.dead
local list = KEYS[1] .. '-ff:' .. ARGV[1]
local offset, most = tonumber(ARGV[2]), tonumber(ARGV[3])
local oldest = ARGV[5] == '1'
local entries, bytes = {}, 0
while #entries < most do
  local first = offset + #entries
  local step = math.min(#entries == 0 and 1 or 8, most - #entries) -- however large each of them is
  local got
  if oldest then
    got = redis.call('LRANGE', list, -first - step, -first - 1)
  else
    got = redis.call('LRANGE', list, first, first + step - 1)
  end
  for i = 1, #got do
    local entry = oldest and got[#got + 1 - i] or got[i]
    bytes = bytes + #entry
    if bytes > tonumber(ARGV[4]) and #entries > 0 then return entries end
    entries[#entries + 1] = entry
  end
  if #got < step then break end
end
return entries
