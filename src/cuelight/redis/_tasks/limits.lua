-- Finds the next claimable task with limits without reading the tasks that must wait. The rules are those of
-- `tasks/_stores/_limits.py`; a contract test compares the two. A limit queue holds the pending tasks with the same limits:
--
-- 1. A claimable limit queue waits for no limit; any other waits for exactly one.
-- 2. If a limit would admit the first task of the first limit queue that waits for it, that queue becomes claimable.
--    `update_limit` is called for each key of a limit queue that has changed, so the next queue follows.
-- 3. So a task does not overtake a more urgent one that waits for the same limit, and it does overtake all others.
--
-- A limit of a task is {key, max_concurrent, rate, per, burst, cost}, with false for each part without a limit.

local RUNNING, OVERRIDE, NUMBER, HEAD = 1, 4, 1, 4 -- of a limit state; of a limit queue
local MOST_DROPPED = 1000 -- members without tasks that one step drops, so that each step ends
local limit_state_of, save_limit_state, limit_queue_of, limit_queue_numbered, drop_limit_queue, save_limit_queue,
  first_limit_queue, first_in, update_limit, left_limit_queue, entered_limit_queue, must_wait, start_limits,
  end_limits, pause_limit
local limit_states = {} -- by key

do
  local KEY, MOST, RATE, PER, BURST, COST = 1, 2, 3, 4, 5, 6

  -- Limit states: {running, tat, closed until, override, waiting, due}; due is -1 for never.

  local TAT, SHUT, WAITING, LOOK = 2, 3, 5, 6

  function limit_state_of(key)
    local limit_state = limit_states[key]
    if not limit_state then
      local raw = read(SIDE, 'g' .. key)
      if raw then
        local readable, stored = pcall(function()
          local one = unpacked(raw)
          return 0 <= one[RUNNING] and one[RUNNING] < EXACT and -LATEST < one[TAT] and one[TAT] < LATEST
            and -LATEST < one[SHUT] and one[SHUT] < LATEST and -2 < one[LOOK] and one[LOOK] <= INF
            and (not one[OVERRIDE] or sound_limit(one[OVERRIDE])) and one
        end)
        limit_state = readable and stored
        if not limit_state then -- nothing is started until it was rebuilt
          limit_state = {0, 0, INF, false, false, -1}
          broken[#broken + 1] = {'limit', key}
        end
      else
        limit_state = {0, 0, 0, false, false, -1}
      end
      limit_states[key] = limit_state
    end
    return limit_state
  end

  function save_limit_state(key, limit_state)
    put(SIDE, 'g' .. key, pack(limit_state))
    if limit_state[LOOK] >= 0 then
      zput(GATES, key, limit_state[LOOK])
    else
      zdrop(GATES, key)
    end
  end

  local function drop_limit_state(key)
    limit_states[key] = nil
    put(SIDE, 'g' .. key, false)
    zdrop(GATES, key)
  end

  local function available_at(limit_state, own)
    local limit = limit_state[OVERRIDE] or own
    if limit[MOST] and limit_state[RUNNING] >= limit[MOST] then
      return INF
    end
    if not limit[RATE] then
      return limit_state[SHUT]
    end
    local burst = limit[BURST] or limit[RATE]
    return math.max(limit_state[SHUT], limit_state[TAT] - math.max(0, burst - own[COST]) * limit[PER] / limit[RATE])
  end

  local function charge(limit_state, own)
    limit_state[RUNNING] = limit_state[RUNNING] + 1
    local limit = limit_state[OVERRIDE] or own
    if limit[RATE] then
      limit_state[TAT] = math.max(limit_state[TAT], now) + own[COST] * limit[PER] / limit[RATE]
    end
  end

  -- Limit queues: {number, keys, waits_on, head}; head is the order of the first task, false before there is one.

  local LIMIT_KEYS, WAITS_ON = 2, 3
  local lanes, turns = {}, {} -- limit queues by number, and the member of each in `turns`

  local function joined(keys)
    local parts = {}
    for index, key in ipairs(keys) do
      parts[index] = #key .. ':' .. key
    end
    return table.concat(parts)
  end

  local function turn_prefix(waits_on)
    return #waits_on .. ':' .. waits_on .. '='
  end

  local function turn_of(limit_queue)
    local head = limit_queue[HEAD]
    return turn_prefix(limit_queue[WAITS_ON]) .. place_at(head[1], head[2], head[3], head[4])
      .. string.format('%.0f', limit_queue[NUMBER])
  end

  -- Return the first task in a limit queue. Members without tasks are dropped; if there are very many, the next claim
  -- continues.
  function first_in(number)
    local prefix = limit_queue_prefix(number)
    for _ = 1, MOST_DROPPED do
      write_zset(READY)
      local found = redis.call('ZRANGEBYLEX', READY, '[' .. prefix .. '0', '(' .. prefix .. '2', 'LIMIT', 0, 1)[1]
      if not found then
        return nil
      end
      local row = row_of(string.sub(found, LANE_PREFIX + PLACE + 1))
      if row and row[STATE] == PENDING and row[LANE] == number and member_of(row) == found then
        return row
      end
      drop_stale(READY, found, string.sub(found, LANE_PREFIX + PLACE + 1))
    end
  end

  local function keys_of(row)
    local keys = {}
    for index, limit in ipairs(row[LIMITS]) do
      keys[index] = limit[KEY]
    end
    table.sort(keys)
    return keys
  end

  function save_limit_queue(limit_queue)
    local number, turn = limit_queue[NUMBER], turn_of(limit_queue)
    if turns[number] and turns[number] ~= turn then
      zdrop(TURNS, turns[number])
    end
    turns[number] = turn
    zput(TURNS, turn, 0)
    put(SIDE, string.format('i%.0f', number), pack(limit_queue))
  end

  -- Return a limit queue; nil if there is none. An unreadable one is rebuilt from its first task.
  function limit_queue_numbered(number)
    local limit_queue = lanes[number]
    if not limit_queue and number % 1 == 0 and 0 < number and number < LANES then
      local readable, stored = pcall(function()
        local limit_queue = unpacked(read(SIDE, string.format('i%.0f', number)))
        local head = limit_queue[HEAD]
        return limit_queue[NUMBER] == number and joined(limit_queue[LIMIT_KEYS]) ~= '' and '' <= limit_queue[WAITS_ON]
          and (not head or -INF <= head[1] and -INF <= head[2] and 0 <= head[3] and 0 <= head[4]) and limit_queue
      end)
      if readable and stored then
        limit_queue = stored
        turns[number] = limit_queue[HEAD] and turn_of(limit_queue)
      else
        local first = first_in(number)
        if first then
          limit_queue = {number, keys_of(first), '', order_of_row(first)}
          save_limit_queue(limit_queue)
        end
      end
      lanes[number] = limit_queue
    end
    return limit_queue
  end

  function limit_queue_of(row)
    local keys = keys_of(row)
    local name = 'k' .. joined(keys)
    local number = tonumber(read(SIDE, name) or 0) or 0
    local limit_queue = lanes[number]
    if not limit_queue then
      limit_queue = limit_queue_numbered(number)
      if limit_queue and 'k' .. joined(limit_queue[LIMIT_KEYS]) ~= name then -- it belongs to other keys: damage
        limit_queue = nil
      end
    end
    if not limit_queue then
      set('lanes', meta.lanes + 1)
      limit_queue = {meta.lanes, keys, '', false}
      lanes[meta.lanes] = limit_queue
      put(SIDE, name, exact(meta.lanes))
    end
    return limit_queue
  end

  function drop_limit_queue(limit_queue)
    local number = limit_queue[NUMBER]
    if turns[number] then
      zdrop(TURNS, turns[number])
    end
    lanes[number], turns[number] = nil, nil
    put(SIDE, string.format('i%.0f', number), false)
    put(SIDE, 'k' .. joined(limit_queue[LIMIT_KEYS]), false)
  end

  function first_limit_queue(waits_on)
    local prefix = turn_prefix(waits_on)
    for _ = 1, MOST_DROPPED do
      write_zset(TURNS)
      local turn = redis.call('ZRANGEBYLEX', TURNS, '[' .. prefix .. '0', '(' .. prefix .. '2', 'LIMIT', 0, 1)[1]
      if not turn then
        return nil
      end
      local limit_queue = limit_queue_numbered(tonumber(string.sub(turn, #prefix + PLACE + 1)) or 0)
      if limit_queue and turns[limit_queue[NUMBER]] == turn then
        return limit_queue
      end
      zdrop(TURNS, turn)
    end
  end

  -- Changes

  local function update_limits(limit_queue)
    for _, key in ipairs(limit_queue[LIMIT_KEYS]) do
      update_limit(key)
    end
  end

  -- Handle that a task is no longer pending; it was saved.
  function left_limit_queue(number, sequence)
    local limit_queue = limit_queue_numbered(number)
    if not limit_queue or not limit_queue[HEAD] or limit_queue[HEAD][4] ~= sequence then
      return
    end
    local first = first_in(number)
    if first then
      limit_queue[HEAD] = order_of_row(first)
      save_limit_queue(limit_queue)
    else
      drop_limit_queue(limit_queue)
    end
    update_limits(limit_queue)
  end

  -- Make the first limit queue that waits for a limit claimable if the limit admits its first task; otherwise set the
  -- time of the next update.
  update_limit = function(key)
    if key == '' then -- no limit has this key, and no queue waits for it: damage
      return drop_limit_state(key)
    end
    local limit_state, limit_queue, first = limit_state_of(key), first_limit_queue(key), nil
    if limit_queue then
      first = first_in(limit_queue[NUMBER])
      if not first then -- its tasks are missing: damage
        drop_limit_queue(limit_queue)
        return update_limit(key)
      end
    end
    if not first then
      limit_state[WAITING] = false
      local forget = math.max(limit_state[TAT], limit_state[SHUT])
      if limit_state[RUNNING] > 0 or limit_state[OVERRIDE] then
        forget = -1
      elseif forget <= now then
        drop_limit_state(key)
        return
      end
      limit_state[LOOK] = forget
    else
      local own
      for _, limit in ipairs(first[LIMITS]) do
        if limit[KEY] == key then
          own = limit
        end
      end
      if not own then -- the queue waits for a limit that its task does not have: damage
        limit_queue[WAITS_ON] = ''
        save_limit_queue(limit_queue)
        return update_limit(key)
      end
      limit_state[WAITING], makes_claimable = true, true
      local at = available_at(limit_state, own)
      limit_state[LOOK] = (now < at and at < INF) and at or -1
      if at <= now then
        limit_queue[WAITS_ON] = ''
        save_limit_queue(limit_queue)
      end
    end
    save_limit_state(key, limit_state)
  end

  -- Handle that a task has become pending in a limit queue; it was saved.
  function entered_limit_queue(limit_queue, row)
    local order = order_of_row(row)
    if not limit_queue[HEAD] or before(order, limit_queue[HEAD]) then
      limit_queue[HEAD] = order
      save_limit_queue(limit_queue)
      if limit_queue[WAITS_ON] ~= '' then
        update_limit(limit_queue[WAITS_ON])
      end
    end
  end

  -- Whether a limit does not admit the first task of a limit queue; the queue then waits for that limit.
  function must_wait(limit_queue, row)
    for _, limit in ipairs(row[LIMITS]) do
      local limit_state = limit_state_of(limit[KEY])
      local ahead = limit_state[WAITING] and first_limit_queue(limit[KEY])
      if available_at(limit_state, limit) > now or (ahead and before(ahead[HEAD], limit_queue[HEAD])) then
        limit_queue[WAITS_ON] = limit[KEY]
        save_limit_queue(limit_queue)
        update_limits(limit_queue)
        return true
      end
    end
    return false
  end

  -- Charge the limits of a task, before it is saved as in flight.
  function start_limits(row)
    for _, limit in ipairs(row[LIMITS]) do
      local limit_state = limit_state_of(limit[KEY])
      charge(limit_state, limit)
      save_limit_state(limit[KEY], limit_state)
    end
  end

  -- Release the limits of a task that is no longer in flight.
  function end_limits(row)
    for _, limit in ipairs(row[LIMITS]) do
      local limit_state = limit_state_of(limit[KEY])
      limit_state[RUNNING] = math.max(0, limit_state[RUNNING] - 1)
      save_limit_state(limit[KEY], limit_state)
      update_limit(limit[KEY])
    end
  end

  function pause_limit(key, seconds)
    local limit_state = limit_state_of(key)
    limit_state[SHUT] = seconds > 0 and math.max(limit_state[SHUT], now + seconds) or 0
    save_limit_state(key, limit_state)
    update_limit(key)
  end
end
