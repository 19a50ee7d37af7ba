-- What a claim says beside what it gives. Sent behind a blocking call, it is read in the moment in which that has moved
-- something. If that has run out, as it does all the time, this is to cost next to nothing. Writes nothing.
--
-- KEYS  1 the broker's prefix
-- ARGV  1 the inbox   2... names of tasks whose enabled flag is wanted
-- returns {1 if runs may be suspect, so that a claim has to look at them, else 0;
--          and if something is in the inbox: list of flags (JSON text or false), the server's time in microseconds}
-- called by  WakeUp
local prefix = KEYS[1]
local suspect = prefix .. '-ff:suspect'
local strikes = prefix .. '-ff:strikes'
if redis.call('EXISTS', ARGV[1], suspect, strikes) == 0 then return {0} end
local suspicious = math.min(1, redis.call('EXISTS', suspect, strikes))
local flags = {}
for i = 2, #ARGV do
  flags[i - 1] = redis.call('HGET', prefix .. '-tasks-' .. ARGV[i], 'enabled')
end
local now = redis.call('TIME')
return {suspicious, flags, now[1] * 1000000 + now[2]}
