-- Push a run of an interval, unless somebody fired it after the time that the caller knows of.
--
-- KEYS  1 the broker's prefix, "{NAME}"
-- ARGV  1 name of the mark   2 when it was fired last, as the caller knows, or 0   3 the time of this firing
--       4 ms to remember it   5 the queue: high, medium or low   6 the payload
--       Times are microseconds since the epoch, of the caller's clock.
-- returns {1, the time of this firing}, or {0, when it was fired instead}: nothing was pushed
-- called by  RedisTaskBroker.push_after, for ScheduleTasks
local mark = KEYS[1] .. '-ff:mark:' .. ARGV[1]
local queue = KEYS[1] .. '-queue-' .. ARGV[5]
redis.call('LLEN', queue) -- a key of the wrong type is found before anything is written
local fired = redis.call('GET', mark)
if fired and fired ~= ARGV[2] then
  redis.call('PEXPIRE', mark, ARGV[4]) -- a write, so that WAIT behind it waits for what was written before
  return {0, tonumber(fired)}
end
-- first, because on a server that is full it is refused, and then nothing has been pushed
redis.call('SET', mark, ARGV[3], 'PX', ARGV[4])
redis.call('LPUSH', queue, ARGV[6])
return {1, tonumber(ARGV[3])}
