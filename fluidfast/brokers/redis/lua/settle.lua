-- Settle runs under a lease. All of it takes effect, or nothing if the lease is gone.
--
-- KEYS  1 the broker's prefix
-- ARGV  1 batch   2 ms to keep a reply   then seven lists, each with its length in front:
--       fields that are settled (length "*": all that the lease holds, and no fields follow)
--       retries: ms from now, priority letter and new payload
--       dead: field, dead or failed (the list that keeps it), header line
--       info: task, last_run_end, last_run_duration, last_run_state (JSON texts)
--       replies: address, payload
--       slots: task, slot held under max_concurrency (FENCE RUN-ID, see acquire.lua)
--       strikes: field of a run that had strikes and has survived
--       at the end, if anything is dead: at most how many and how many bytes of them are kept, dead and failed
-- returns 1, or 0 if the batch holds no lease (another consumer has, or had, these runs) and nothing was changed; or, if
--         the runs are settled, but not all of the rest was done, why
-- called by  RedisTaskBroker.settle, with kept.lua
local prefix = KEYS[1]
local batch = ARGV[1]
local lease = prefix .. '-ff:lease:' .. batch
local leases = prefix .. '-ff:leases'
if not redis.call('ZSCORE', leases, batch) then
  return 0
end
local at = 3
local function names(per)
  local from = at + 1
  local n = tonumber(ARGV[at])
  at = at + 1 + n * per
  return from, n
end
local whole = ARGV[at] == '*'
local fields, n_fields = at, 0
if whole then
  at = at + 1
else
  fields, n_fields = names(1)
end
local retries, n_retries = names(2)
local dead, n_dead = names(3)
local info, n_info = names(4)
local replies, n_replies = names(2)
local slots, n_slots = names(2)
local survived, n_survived = names(1)

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
  local corpses = {dead = {}, failed = {}}
  for i = dead, dead + 3 * (n_dead - 1), 3 do
    local payload = redis.call('HGET', lease, ARGV[i])
    if payload then table.insert(corpses[ARGV[i + 1]], ARGV[i + 2] .. '\n' .. payload) end
  end
  local full = is_full(prefix)
  function bury()
    try_keep(prefix)
    keep(prefix, 'dead', corpses.dead, tonumber(ARGV[#ARGV - 3]), tonumber(ARGV[#ARGV - 2]))
    keep(prefix, 'failed', corpses.failed, tonumber(ARGV[#ARGV - 1]), tonumber(ARGV[#ARGV]), full)
  end
end
if n_retries + n_dead > 0 then
  if whole then
    redis.call('UNLINK', prefix .. '-ff:nothing')
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
  if n_retries > 0 then redis.call('ZADD', prefix .. '-ff:delayed', 'XX', 0, '') end
  if bury then bury() end
  for i = retries, retries + 2 * (n_retries - 1), 2 do
    redis.call('ZADD', prefix .. '-ff:delayed', now + tonumber(ARGV[i]), ARGV[i + 1])
  end
end
if whole then
  redis.call('UNLINK', lease)
  redis.call('ZREM', leases, batch)
else
  local settled = 0
  for i = fields, fields + n_fields - 1, 4000 do
    settled = settled + redis.call('HDEL', lease, unpack(ARGV, i, math.min(fields + n_fields - 1, i + 3999)))
  end
  if n_fields > 0 and settled == 0 then
    return 1 -- the reply to this very settlement was lost: a retry that it asked for may have left "delayed" since
  end
  if redis.call('EXISTS', lease) == 0 then
    redis.call('ZREM', leases, batch)
  end
end

local refused, reply -- each command is refused by itself; a function for that would cost 2 % of a settlement
for i = info, info + 4 * (n_info - 1), 4 do
  reply = redis.pcall('HSET', prefix .. '-tasks-' .. ARGV[i], 'last_run_end', ARGV[i + 1],
    'last_run_duration', ARGV[i + 2], 'last_run_state', ARGV[i + 3])
  if type(reply) == 'table' then refused = reply.err end
end
for i = replies, replies + 2 * (n_replies - 1), 2 do
  local key = prefix .. '-ff:reply:' .. ARGV[i]
  reply = redis.pcall('RPUSH', key, ARGV[i + 1])
  if type(reply) == 'number' then reply = redis.pcall('PEXPIRE', key, ARGV[2]) end
  if type(reply) == 'table' then refused = reply.err end
end
for i = slots, slots + 2 * (n_slots - 1), 2 do
  local id = string.match(ARGV[i + 1], '^%S+ (.*)$') or ARGV[i + 1]
  reply = redis.pcall('ZREM', prefix .. '-ff:slots:' .. ARGV[i], ARGV[i + 1])
  if reply == 1 then reply = redis.pcall('DEL', prefix .. '-task-run-' .. ARGV[i] .. '-' .. id) end
  if type(reply) == 'table' then refused = reply.err end
end
for _, mark in ipairs(marks) do
  reply = redis.pcall('HDEL', prefix .. '-ff:strikes', mark)
  if type(reply) == 'table' then refused = reply.err end
end
return refused or 1
