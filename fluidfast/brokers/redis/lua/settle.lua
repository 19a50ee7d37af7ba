-- Settle runs under a lease. All of it takes effect, or nothing if the lease is gone.
--
-- KEYS  1 nothing   2 the lease of the batch   3 the leases   then, if the list in ARGV that needs them is not empty:
--       the delayed runs (retries); the dead, the failed, what is kept, the cursors (dead); the strikes (strikes); the
--       info of each task (info); the list of each reply (replies); for each slot a pair: the slots of its task,
--       aio-fluid's key of its run (slots)
-- ARGV  1 batch   2 ms to keep a reply   3 to 9 lengths of the seven lists that follow (3 is "*" if all that the lease
--       holds is settled: then no fields follow):
--       fields that are settled
--       retries: ms from now, priority letter and new payload
--       dead: d or f (dead or failed: the list that keeps it) followed by the field, header line
--       info: last_run_end, last_run_duration, last_run_state (JSON texts)
--       replies: payload
--       slots: slot held under max_concurrency (FENCE RUN-ID, see acquire.lua)
--       strikes: field of a run that had strikes and has survived
--       at the end, if anything is dead: at most how many and how many bytes of them are kept, dead and failed
-- returns 1, or 0 if the batch holds no lease (another consumer has, or had, these runs) and nothing was changed; or, if
--         the runs are settled, but not all of the rest was done, why
-- called by  RedisTaskBroker._settle
local batch, lease, leases = ARGV[1], KEYS[2], KEYS[3]
if not redis.call('ZSCORE', leases, batch) then
  return 0
end
local number = tonumber
local whole = ARGV[3] == '*'
local n_fields = whole and 0 or number(ARGV[3])
local n_retries, n_dead, n_info = number(ARGV[4]), number(ARGV[5]), number(ARGV[6])
local n_replies, n_slots, n_survived = number(ARGV[7]), number(ARGV[8]), number(ARGV[9])
local fields = 10
local retries = fields + n_fields
local dead = retries + 2 * n_retries
local info = dead + 2 * n_dead
local replies = info + 3 * n_info
local slots = replies + n_replies
local survived = slots + n_slots
local key = 3 -- the last one whose list has been looked at
if n_retries > 0 then key = 4 end

-- Read first what is needed of the lease. Then write what frees memory: a server that is full refuses a script only at
-- its first write, and only if that could grow. Where something else is to be kept for it (a retry, a dead letter), that
-- comes before the lease lets go of the run, and behind a harmless call of each command that may yet be refused. The
-- rest (infos, replies, slots) comes when the runs are settled, and is done as far as the user's rights go.
local marks = {}
for i = survived, survived + n_survived - 1 do
  local payload = redis.call('HGET', lease, ARGV[i])
  if payload then marks[#marks + 1] = redis.sha1hex(payload) end
end
local bury
if n_dead > 0 then -- functions are made anew by each call that passes them: of these, 11 % of a settlement
  -- kept.lua stands here
  local keys = {
    nothing = KEYS[1], dead = KEYS[key + 1], failed = KEYS[key + 2], kept = KEYS[key + 3], sifts = KEYS[key + 4],
  }
  key = key + 4
  local corpses = {d = {}, f = {}}
  for i = dead, dead + 2 * (n_dead - 1), 2 do
    local payload = redis.call('HGET', lease, string.sub(ARGV[i], 2))
    if payload then table.insert(corpses[string.sub(ARGV[i], 1, 1)], ARGV[i + 1] .. '\n' .. payload) end
  end
  local full = is_full(keys)
  function bury()
    try_keep(keys)
    keep(keys, 'dead', corpses.d, tonumber(ARGV[#ARGV - 3]), tonumber(ARGV[#ARGV - 2]))
    keep(keys, 'failed', corpses.f, tonumber(ARGV[#ARGV - 1]), tonumber(ARGV[#ARGV]), full)
  end
end
if n_survived > 0 then key = key + 1 end
local strikes = KEYS[key]
if n_retries + n_dead > 0 then
  if whole then
    redis.call('UNLINK', KEYS[1])
  else
    local held = n_fields == 0
    for i = fields, fields + n_fields - 1 do
      held = held or redis.call('HGET', lease, ARGV[i])
    end
    if not held then return 1 end -- as below
    redis.call('HDEL', lease, '')
  end
  redis.call('ZREM', leases, '')
  local t = redis.call('TIME')
  local now = t[1] * 1000 + math.floor(t[2] / 1000)
  if n_retries > 0 then redis.call('ZADD', KEYS[4], 'XX', 0, '') end
  if bury then bury() end
  for i = retries, retries + 2 * (n_retries - 1), 2 do
    redis.call('ZADD', KEYS[4], now + tonumber(ARGV[i]), ARGV[i + 1])
  end
end
if whole then
  redis.call('UNLINK', lease)
  redis.call('ZREM', leases, batch)
else
  local settled = n_fields > 0 and redis.call('HDEL', lease, unpack(ARGV, fields, fields + n_fields - 1))
  if settled == 0 then
    return 1 -- the reply to this very settlement was lost: a retry that it asked for may have left "delayed" since
  end
  if redis.call('EXISTS', lease) == 0 then
    redis.call('ZREM', leases, batch)
  end
end

local refused, reply -- each command is refused by itself; a function for that would cost 2 % of a settlement
for i = info, info + 3 * (n_info - 1), 3 do
  key = key + 1
  reply = redis.pcall('HSET', KEYS[key], 'last_run_end', ARGV[i], 'last_run_duration', ARGV[i + 1],
    'last_run_state', ARGV[i + 2])
  if type(reply) == 'table' then refused = reply.err end
end
for i = replies, replies + n_replies - 1 do
  key = key + 1
  reply = redis.pcall('RPUSH', KEYS[key], ARGV[i])
  if type(reply) == 'number' then reply = redis.pcall('PEXPIRE', KEYS[key], ARGV[2]) end
  if type(reply) == 'table' then refused = reply.err end
end
for i = slots, slots + n_slots - 1 do
  key = key + 2
  reply = redis.pcall('ZREM', KEYS[key - 1], ARGV[i])
  if reply == 1 then reply = redis.pcall('DEL', KEYS[key]) end
  if type(reply) == 'table' then refused = reply.err end
end
for _, mark in ipairs(marks) do
  reply = redis.pcall('HDEL', strikes, mark)
  if type(reply) == 'table' then refused = reply.err end
end
return refused or 1
