-- Give what a claim gives beside its runs. Sent behind a blocking call, it reads in the moment in which that call has
-- moved something. If the call has run out, as it does all the time, this costs next to nothing. Writes nothing.
--
-- KEYS  1 the broker's prefix
-- ARGV  1 the inbox   2... names of tasks whose enabled flag is wanted
-- returns {1 if a claim has to look: a suspect waits, or workers died holding what was moved; else 0;
--          and if something is in the inbox: list of flags (JSON text or false), the server's time in microseconds}
-- called by  WakeUp
local prefix = KEYS[1]
local inbox = ARGV[1]
local suspect = prefix .. '-ff:suspect'
local strikes = prefix .. '-ff:strikes'
if redis.call('EXISTS', inbox, suspect) == 0 then return {0} end
local look = redis.call('EXISTS', suspect)
local payload = redis.call('LINDEX', inbox, 0)
if not payload then return {look} end
if redis.call('EXISTS', strikes) == 1 and redis.call('HGET', strikes, redis.sha1hex(payload)) then look = 1 end
local flags = {}
for i = 2, #ARGV do
  flags[i - 1] = redis.call('HGET', prefix .. '-tasks-' .. ARGV[i], 'enabled')
end
local now = redis.call('TIME')
return {look, flags, now[1] * 1000000 + now[2]}
