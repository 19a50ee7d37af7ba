-- Give back slots under max_concurrency without a settlement: a run's function ended long after the run did, or its
-- lease was lost.
--
-- KEYS  1 nothing   then for each slot a pair: the slots of its task, aio-fluid's key of its run
-- ARGV  the slots (FENCE RUN-ID, see acquire.lua)
-- returns nothing
-- called by  RedisTaskBroker.free
for i, slot in ipairs(ARGV) do
  if redis.call('ZREM', KEYS[2 * i], slot) == 1 then
    redis.call('DEL', KEYS[2 * i + 1])
  end
end
