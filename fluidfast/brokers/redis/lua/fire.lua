-- Push a run of an interval, unless somebody fired it after the time that the caller knows of.
--
-- KEYS  1 nothing   2 the mark of the schedule   3 the queue
-- ARGV  1 when it was fired last, as the caller knows, or 0   2 the time of this firing   3 ms to remember it
--       4 the payload
--       Times are microseconds since the epoch, of the caller's clock.
-- returns {1, the time of this firing}, or {0, when it was fired instead}: nothing was pushed
-- called by  RedisTaskBroker.push_after
local mark, queue = KEYS[2], KEYS[3]
redis.call('LLEN', queue) -- a key of the wrong type is found before anything is written
local fired = redis.call('GET', mark)
if fired and fired ~= ARGV[1] then
  redis.call('PEXPIRE', mark, ARGV[3]) -- a write, so that WAIT behind it waits for what was written before
  return {0, tonumber(fired)}
end
-- first, because on a server that is full it is refused, and then nothing has been pushed
redis.call('SET', mark, ARGV[2], 'PX', ARGV[3])
redis.call('LPUSH', queue, ARGV[4])
return {1, tonumber(ARGV[2])}
