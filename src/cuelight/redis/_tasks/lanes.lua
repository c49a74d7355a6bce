-- Which task with limits may go next, without looking at those that may not. The rules are those of `tasks/_stores/_limits.py`
-- and `tasks/_stores/_limits.py`, which a test of the contract holds them to:
--
-- 1. A lane that is asked for work waits on no limit; any other waits on exactly one.
-- 2. Where lanes wait on a limit that would admit the first task of the first of them, that lane is asked for work.
--    It passes the turn on when it has been looked at: `settle` is called for each key of a lane that has changed.
-- 3. So a task does not overtake a more urgent one that waits on the same limit, and it does overtake all others.
--
-- A limit of a task is {key, max_concurrent, rate, per, burst, cost}, false for what is not limited.

local RUNNING, OVERRIDE, NUMBER, HEAD = 1, 4, 1, 4 -- of a gate; of a lane
local MOST_DROPPED = 1000 -- members without tasks: whatever is there, no step goes on for ever
local gate_of, save_gate, lane_of, lane_numbered, drop_lane, save_lane, first_lane, first_in, settle, left, entered, refused,
  start, ended, pause_limit
local gates = {} -- by key

do
  local KEY, MOST, RATE, PER, BURST, COST = 1, 2, 3, 4, 5, 6

  -- Gates: {running, tat, closed, override, waiting, due}; due is -1 for never.

  local TAT, SHUT, WAITING, LOOK = 2, 3, 5, 6

  function gate_of(key)
    local gate = gates[key]
    if not gate then
      local raw = read(SIDE, 'g' .. key)
      if raw then
        local readable, there = pcall(function()
          local gate = unpacked(raw)
          return 0 <= gate[RUNNING] and gate[RUNNING] < EXACT and -LATEST < gate[TAT] and gate[TAT] < LATEST
            and -LATEST < gate[SHUT] and gate[SHUT] < LATEST and -2 < gate[LOOK] and gate[LOOK] <= INF
            and (not gate[OVERRIDE] or sound_limit(gate[OVERRIDE])) and gate
        end)
        gate = readable and there
        if not gate then -- nothing is started until it was made again
          gate = {0, 0, INF, false, false, -1}
          broken[#broken + 1] = {'gate', key}
        end
      else
        gate = {0, 0, 0, false, false, -1}
      end
      gates[key] = gate
    end
    return gate
  end

  function save_gate(key, gate)
    put(SIDE, 'g' .. key, pack(gate))
    if gate[LOOK] >= 0 then
      zput(GATES, key, gate[LOOK])
    else
      zdrop(GATES, key)
    end
  end

  local function drop_gate(key)
    gates[key] = nil
    put(SIDE, 'g' .. key, false)
    zdrop(GATES, key)
  end

  local function opens(gate, own)
    local limit = gate[OVERRIDE] or own
    if limit[MOST] and gate[RUNNING] >= limit[MOST] then
      return INF
    end
    if not limit[RATE] then
      return gate[SHUT]
    end
    local burst = limit[BURST] or limit[RATE]
    return math.max(gate[SHUT], gate[TAT] - math.max(0, burst - own[COST]) * limit[PER] / limit[RATE])
  end

  local function take(gate, own)
    gate[RUNNING] = gate[RUNNING] + 1
    local limit = gate[OVERRIDE] or own
    if limit[RATE] then
      gate[TAT] = math.max(gate[TAT], now) + own[COST] * limit[PER] / limit[RATE]
    end
  end

  -- Lanes: {number, keys, waits_on, head}; head is the place of its first task, false before that has come.

  local LIMIT_KEYS, WAITS_ON = 2, 3
  local lanes, turns = {}, {} -- by number; and the member of `turns` that each has there

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

  local function turn_of(lane)
    local head = lane[HEAD]
    return turn_prefix(lane[WAITS_ON]) .. place_at(head[1], head[2], head[3], head[4]) .. string.format('%.0f', lane[NUMBER])
  end

  -- The first task in a lane. A member without its task is dropped. The next claim goes on when there are very many.
  function first_in(number)
    local prefix = lane_prefix(number)
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
      stray(READY, found, string.sub(found, LANE_PREFIX + PLACE + 1))
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

  function save_lane(lane)
    local number, turn = lane[NUMBER], turn_of(lane)
    if turns[number] and turns[number] ~= turn then
      zdrop(TURNS, turns[number])
    end
    turns[number] = turn
    zput(TURNS, turn, 0)
    put(SIDE, string.format('i%.0f', number), pack(lane))
  end

  -- nil if there is none. One that cannot be read is made again of its first task.
  function lane_numbered(number)
    local lane = lanes[number]
    if not lane and number % 1 == 0 and 0 < number and number < LANES then
      local readable, there = pcall(function()
        local lane = unpacked(read(SIDE, string.format('i%.0f', number)))
        local head = lane[HEAD]
        return lane[NUMBER] == number and joined(lane[LIMIT_KEYS]) ~= '' and '' <= lane[WAITS_ON]
          and (not head or -INF <= head[1] and -INF <= head[2] and 0 <= head[3] and 0 <= head[4]) and lane
      end)
      if readable and there then
        lane = there
        turns[number] = lane[HEAD] and turn_of(lane)
      else
        local first = first_in(number)
        if first then
          lane = {number, keys_of(first), '', head_of(first)}
          save_lane(lane)
        end
      end
      lanes[number] = lane
    end
    return lane
  end

  function lane_of(row)
    local keys = keys_of(row)
    local name = 'k' .. joined(keys)
    local number = tonumber(read(SIDE, name) or 0) or 0
    local lane = lanes[number]
    if not lane then
      lane = lane_numbered(number)
      if lane and 'k' .. joined(lane[LIMIT_KEYS]) ~= name then -- that of others: not by any step
        lane = nil
      end
    end
    if not lane then
      set('lanes', meta.lanes + 1)
      lane = {meta.lanes, keys, '', false}
      lanes[meta.lanes] = lane
      put(SIDE, name, exact(meta.lanes))
    end
    return lane
  end

  function drop_lane(lane)
    local number = lane[NUMBER]
    if turns[number] then
      zdrop(TURNS, turns[number])
    end
    lanes[number], turns[number] = nil, nil
    put(SIDE, string.format('i%.0f', number), false)
    put(SIDE, 'k' .. joined(lane[LIMIT_KEYS]), false)
  end

  function first_lane(waits_on)
    local prefix = turn_prefix(waits_on)
    for _ = 1, MOST_DROPPED do
      write_zset(TURNS)
      local turn = redis.call('ZRANGEBYLEX', TURNS, '[' .. prefix .. '0', '(' .. prefix .. '2', 'LIMIT', 0, 1)[1]
      if not turn then
        return nil
      end
      local lane = lane_numbered(tonumber(string.sub(turn, #prefix + PLACE + 1)) or 0)
      if lane and turns[lane[NUMBER]] == turn then
        return lane
      end
      zdrop(TURNS, turn)
    end
  end

  -- What happens to them

  local function settle_all(lane)
    for _, key in ipairs(lane[LIMIT_KEYS]) do
      settle(key)
    end
  end

  -- A task is pending no more, and was saved.
  function left(number, sequence)
    local lane = lane_numbered(number)
    if not lane or not lane[HEAD] or lane[HEAD][4] ~= sequence then
      return
    end
    local first = first_in(number)
    if first then
      lane[HEAD] = head_of(first)
      save_lane(lane)
    else
      drop_lane(lane)
    end
    settle_all(lane)
  end

  -- Ask the first lane that waits on a limit for work if the limit admits its first task, or note when to.
  settle = function(key)
    if key == '' then -- no limit has this key, and no lane waits on it: not by any step
      return drop_gate(key)
    end
    local gate, lane, first = gate_of(key), first_lane(key), nil
    if lane then
      first = first_in(lane[NUMBER])
      if not first then -- its tasks are gone: not by any step
        drop_lane(lane)
        return settle(key)
      end
    end
    if not first then
      gate[WAITING] = false
      local forget = math.max(gate[TAT], gate[SHUT])
      if gate[RUNNING] > 0 or gate[OVERRIDE] then
        forget = -1
      elseif forget <= now then
        drop_gate(key)
        return
      end
      gate[LOOK] = forget
    else
      local own
      for _, limit in ipairs(first[LIMITS]) do
        if limit[KEY] == key then
          own = limit
        end
      end
      if not own then -- the lane waits for what is none of its limits: not by any step
        lane[WAITS_ON] = ''
        save_lane(lane)
        return settle(key)
      end
      gate[WAITING], stirs = true, true
      local at = opens(gate, own)
      gate[LOOK] = (now < at and at < INF) and at or -1
      if at <= now then
        lane[WAITS_ON] = ''
        save_lane(lane)
      end
    end
    save_gate(key, gate)
  end

  -- A task has become pending in a lane, and was saved.
  function entered(lane, row)
    local order = head_of(row)
    if not lane[HEAD] or before(order, lane[HEAD]) then
      lane[HEAD] = order
      save_lane(lane)
      if lane[WAITS_ON] ~= '' then
        settle(lane[WAITS_ON])
      end
    end
  end

  -- Whether a limit does not admit the first task of a lane; then the lane waits on it from now on.
  function refused(lane, row)
    for _, limit in ipairs(row[LIMITS]) do
      local gate = gate_of(limit[KEY])
      local ahead = gate[WAITING] and first_lane(limit[KEY])
      if opens(gate, limit) > now or (ahead and before(ahead[HEAD], lane[HEAD])) then
        lane[WAITS_ON] = limit[KEY]
        save_lane(lane)
        settle_all(lane)
        return true
      end
    end
    return false
  end

  -- Take what the limits of a task say, before it is saved as in flight.
  function start(row)
    for _, limit in ipairs(row[LIMITS]) do
      local gate = gate_of(limit[KEY])
      take(gate, limit)
      save_gate(limit[KEY], gate)
    end
  end

  -- Give back the places of a task that is in flight no more.
  function ended(row)
    for _, limit in ipairs(row[LIMITS]) do
      local gate = gate_of(limit[KEY])
      gate[RUNNING] = math.max(0, gate[RUNNING] - 1)
      save_gate(limit[KEY], gate)
      settle(limit[KEY])
    end
  end

  function pause_limit(key, seconds)
    local gate = gate_of(key)
    gate[SHUT] = seconds > 0 and math.max(gate[SHUT], now + seconds) or 0
    save_gate(key, gate)
    settle(key)
  end
end
