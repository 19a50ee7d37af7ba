-- Give what a claim gives beside its runs. Sent behind a blocking call, it reads in the moment in which that call has
-- moved something. If the call has run out, as it does all the time, this costs next to nothing. Writes nothing.
--
-- KEYS  1 nothing   2 the inbox   3 the suspects   4 the strikes   then the info of each task whose enabled flag is wanted
-- ARGV  none
-- returns {1 if a claim has to look: a suspect waits, or workers died holding what was moved; else 0;
--          and if something is in the inbox: list of flags (JSON text or false), the server's time in microseconds}
-- called by  WakeUp._call
local inbox, suspect, strikes = KEYS[2], KEYS[3], KEYS[4]
if redis.call('EXISTS', inbox, suspect) == 0 then return {0} end
local look = redis.call('EXISTS', suspect)
local payload = redis.call('LINDEX', inbox, 0)
if not payload then return {look} end
if redis.call('EXISTS', strikes) == 1 and redis.call('HGET', strikes, redis.sha1hex(payload)) then look = 1 end
local flags = {}
for i = 5, #KEYS do
  flags[i - 4] = redis.call('HGET', KEYS[i], 'enabled')
end
local now = redis.call('TIME')
return {look, flags, now[1] * 1000000 + now[2]}
