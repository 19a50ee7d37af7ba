-- Take runs off the queues into a lease, in one step: they are on a queue or under a lease, never neither. All that only
-- reads comes first; if a command is refused behind that (a right that was taken away, say), all goes back.
--
-- KEYS  1 nothing   2 the lease of the batch   3 the leases   4 the consumers   5 their leases in ms   6 the suspects
--       7 the strikes   then the consumer's inbox of each queue to serve, in order, then these queues, then the info of
--       each task whose enabled flag is wanted
-- ARGV  1 consumer   2 batch, never used before: it is the fence   3 at most this many runs (<= 1000)
--       4 at most this many bytes (one run is always given). A claim that is sent again, since its answer was lost, may
--       ask for less, and never for more: what it held beyond that goes back   5 lease in ms
--       6 letters of the queues to serve, in order   7 a sum: 1 if the consumer runs nothing, so a suspect may be
--       given; 2 if it waits when it is given nothing
-- returns {flat list of field and payload, list of flags (JSON text or false), number of suspects left,
--          flat list of field and strikes, "1" if what was given must run alone,
--          if something was given: the server's time in microseconds, else 0,
--          letters of the inboxes that something was taken from, "*" if that is not known any more}
-- called by  RedisTaskBroker.claim
local lease, suspect, marks = KEYS[2], KEYS[6], KEYS[7]
local served = #ARGV[6]
local given = {}
local alone = 0
local now
local emptied = ''

local flags = {}
for i = 8 + 2 * served, #KEYS do
  flags[#flags + 1] = redis.call('HGET', KEYS[i], 'enabled')
end
local suspects = 0
local struck = false
local first_place = 2
-- one look for suspects, strikes and inboxes, since as a rule there are none
if redis.call('EXISTS', unpack(KEYS, 6, 7 + served)) > 0 then
  first_place = 1
  struck = redis.call('EXISTS', suspect, marks) > 0
  if struck then
    suspects = redis.call('LLEN', suspect)
    redis.call('HGET', marks, '')  -- a right that is missing is refused here, before anything is taken
  end
end

local held = redis.call('HGETALL', lease)
if #held > 0 then
  -- the reply to this very claim was lost: the same again, in order, which a hash of this size may not have kept, up to
  -- what is asked for this time
  emptied = '*'
  local order = {}
  for i = 1, #held, 2 do
    order[#order + 1] = {held[i], held[i + 1]}
  end
  table.sort(order, function(a, b)
    return tonumber(string.sub(a[1], 2)) < tonumber(string.sub(b[1], 2))
  end)
  local bytes = tonumber(ARGV[4])
  local fit = #order
  for i, item in ipairs(order) do
    bytes = bytes - #item[2]
    if i > 1 and (i > tonumber(ARGV[3]) or bytes < 0) then
      fit = i - 1
      break
    end
  end
  for i = #order, fit + 1, -1 do -- to the end that they came from; the first claimed is the next to be taken
    local field, payload = order[i][1], order[i][2]
    redis.call('HDEL', lease, field) -- first, since it frees: so a server that is full lets the script go on
    local queue = KEYS[7 + served + string.find(ARGV[6], string.sub(field, 1, 1), 1, true)]
    if type(redis.pcall('RPUSH', queue, payload)) == 'table' then -- refused: it is given all the same
      redis.call('HSET', lease, field, payload)
      fit = i
      break
    end
  end
  for i = 1, fit do
    given[#given + 1] = order[i][1]
    given[#given + 1] = order[i][2]
  end
else
  local want = tonumber(ARGV[3])
  local bytes = tonumber(ARGV[4])
  local index = 0
  local taken = 0
  local trouble
  -- Text: a number is formatted anew for each call that it is given to. That was 14 % of a claim that gives nothing.
  local step, count = 16, '16'
  if want < 16 then step, count = want, ARGV[3] end
  if tonumber(ARGV[7]) % 2 == 1 and suspects > 0 then
    local member = redis.call('RPOP', suspect)
    given = {string.sub(member, 1, 1) .. '1', string.sub(member, 2)}
    alone = 1
    suspects = suspects - 1
  end
  if alone == 0 then
    for i = 1, served do
      local letter
      local before = index
      -- the inbox, then the queue. A function, made anew by each claim, would cost 4 % of it.
      for place = first_place, 2 do
        local key = KEYS[7 + i + (place - 1) * served]
        while want > 0 and bytes > 0 and not trouble do
          local popped = redis.pcall('RPOP', key, count)
          if not popped then break end
          if popped.err then
            trouble = popped
            break
          end
          letter = letter or string.sub(ARGV[6], i, i)
          for j, payload in ipairs(popped) do
            bytes = bytes - #payload
            if bytes < 0 and index > 0 then
              -- over the bound: this one and the rest go back to the end they came from, or are given all the same
              for k = #popped, j, -1 do
                if type(redis.pcall('RPUSH', key, popped[k])) == 'table' then
                  index = index + 1
                  given[#given + 1] = letter .. index
                  given[#given + 1] = popped[k]
                end
              end
              want = 0
              break
            end
            taken = taken + #payload
            index = index + 1
            want = want - 1
            given[#given + 1] = letter .. index
            given[#given + 1] = payload
          end
          local short = #popped < step
          -- as many as have room by the mean so far: of large ones, most would be popped to be pushed back
          step = math.min(want, math.max(1, math.floor(bytes * index / taken)))
          count = step
          if short then break end
        end
        if place == 1 and index > before then emptied = emptied .. letter end
      end
    end
  end
  if #given > 0 then
    now = redis.pcall('TIME')
    if now.err then trouble = trouble or now end
    if not trouble then
      local deadline = now[1] * 1000 + math.floor(now[2] / 1000) + tonumber(ARGV[5])
      local reply = redis.pcall('ZADD', KEYS[3], deadline, ARGV[2])
      if type(reply) == 'number' then reply = redis.pcall('HSET', lease, unpack(given)) end -- 1000 runs fit Lua's stack
      if type(reply) == 'table' then trouble = reply end
    end
  end
  if trouble then
    local function put_back(key, payload)
      return type(redis.pcall('RPUSH', key, payload)) == 'number'
        or type(redis.pcall('LPUSH', key, payload)) == 'number' -- out of its order, but there
    end
    redis.pcall('ZREM', KEYS[3], ARGV[2])
    for i = #given - 1, 1, -2 do
      local letter = string.sub(given[i], 1, 1)
      if alone == 1 then
        put_back(suspect, letter .. given[i + 1])
      else
        local place = 7 + string.find(ARGV[6], letter, 1, true)
        if not put_back(KEYS[place + served], given[i + 1]) then put_back(KEYS[place], given[i + 1]) end
      end
    end
    return trouble
  end
end

local strikes = {}
if #given > 0 and struck then
  for i = 2, #given, 2 do
    local n = redis.call('HGET', marks, redis.sha1hex(given[i]))
    if n then
      strikes[#strikes + 1] = given[i - 1]
      strikes[#strikes + 1] = n
    end
  end
end
local at = 0
if #given > 0 then
  now = now or redis.call('TIME')
  at = now[1] * 1000000 + now[2]
elseif tonumber(ARGV[7]) >= 2 and not redis.call('ZSCORE', KEYS[4], ARGV[1]) then
  -- It will wait, and what is moved to its inbox then has to be found if it dies: a server that came back empty, or a
  -- consumer that fell silent and goes on, does not know it before its next renewal.
  redis.call('ZREM', KEYS[4], '') -- frees, and removes nothing: see renew.lua
  local t = redis.call('TIME')
  redis.call('ZADD', KEYS[4], t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(ARGV[5]), ARGV[1])
  redis.call('HSET', KEYS[5], ARGV[1], ARGV[5])
end
return {given, flags, suspects, strikes, alone, at, emptied}
