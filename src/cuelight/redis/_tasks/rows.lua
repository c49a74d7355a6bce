-- Tasks

local cache, dirty, forgotten = {}, {}, {}
local remove -- deletes a finished task
local broken = {} -- a list of the damage found, and the ids of unreadable tasks; see `damage.lua`

-- Drop a member of a zset whose task is in another state or missing.
local function drop_stale(key, member, id)
  zdrop(key, member)
  broken[#broken + 1] = {'stale', key, id}
end

-- Whether a limit of a task, or its override, is valid. Call it protected: it raises for values of a wrong type, because
-- Lua compares only numbers with numbers and strings with strings.
local function sound_limit(limit)
  local most, rate, burst = limit[2], limit[3], limit[5]
  return '' < limit[1] and (not most or 0 < most) and (not rate or 0 < rate) and 0 < limit[4]
    and (not burst or 0 < burst) and 0 <= limit[6]
end

-- Whether a step may have written a row, by the fields that scripts use; the client checks the rest. The check costs time
-- for each task, so there is one comparison for each field, and one for the sum of the fields that are not negative.
local function sound(row, id)
  local state, due, turn, limits = row[STATE], row[DUE], row[TURN] or 0, row[LIMITS]
  local seq, epoch, lane, has, priority, ended = row[SEQ], row[EPOCH], row[LANE], row[HAS], row[PRIORITY], row[ENDED]
  if not (row[ID] == id and HOME[state] and 0 < seq and 0 <= epoch and 0 <= lane and 0 <= has and 0 <= turn
    and seq + epoch + has + turn < EXACT and lane < LANES and seq % 1 == 0 and lane % 1 == 0 and 0 <= row[STEP]
    and row[STEP] < STEPS and -LATEST < due and (due < LATEST or state > IN_FLIGHT) and -LATEST < ended
    and ended < LATEST and -EXACT < priority and priority < EXACT and row[DEADLINE] <= INF and row[RETRIES] < EXACT
    and row[TIMEOUTS] < EXACT and row[CRASHES] < EXACT and 0 <= row[TTL]
    and (not row[UNIQUE] or '' <= row[UNIQUE] and row[UNIQUE_FOR] <= INF)) then
    return false
  end
  if limits == false then
    return row[LANE] == 0
  end
  for index = 1, #limits do
    if not sound_limit(limits[index]) then
      return false
    end
  end
  return 0 < #limits and (0 < row[LANE]) == (state == PENDING)
end

-- Put rows into the cache. Raises an error if one of them cannot be read.
local function take(found, ids, first)
  for index = 1, #found do
    local raw, id = found[index], ids[first + index - 1]
    if raw and not cache[id] then
      local row = unpacked(raw)
      if not sound(row, id) then
        error('')
      end
      cache[id] = row
      if row[STATE] > IN_FLIGHT and row[STATE] ~= DEAD_LETTER and row[DUE] < now then
        remove(row) -- its time to live has ended
      end
    end
  end
end

local function load(ids)
  local wanted = {}
  for _, id in ipairs(ids) do
    if cache[id] == nil then
      cache[id] = false
      wanted[#wanted + 1] = id
    end
  end
  for first = 1, #wanted, 1000 do
    local found = redis.call('HMGET', ROWS, unpack(wanted, first, math.min(first + 999, #wanted)))
    if not pcall(take, found, wanted, first) then -- one by one
      for index, raw in ipairs(found) do
        local id = wanted[first + index - 1]
        if raw and not forgotten[id] and not pcall(take, {raw}, {id}, 1) then
          broken[#broken + 1], broken[id] = {'row', id, raw}, true
        end
      end
    end
  end
end

local function row_of(id)
  if cache[id] == nil then
    load({id})
  end
  return cache[id]
end

local function save(row)
  dirty[row[ID]], changed = row, true
end

local function next_sequence()
  set('sequence', meta.sequence + 1)
  return meta.sequence
end

local function add_to_state(row)
  local state = row[STATE]
  if state == PENDING then
    zput(READY, member_of(row), 0)
  elseif state == PARKED or state == DEAD_LETTER then
    zput(HOME[state], row[ID], row[SEQ])
  else
    zput(HOME[state], row[ID], row[DUE])
  end
  makes_claimable = makes_claimable or state < PARKED
end

local function remove_from_state(row)
  local state = row[STATE]
  if state == PENDING then
    zdrop(READY, member_of(row))
  else
    zdrop(HOME[state], row[ID])
  end
end

local function add_waiting(row)
  if row[DEADLINE] < INF then
    zput(DEADLINES, row[ID], row[DEADLINE])
  end
  if meta.sheds == 1 then
    zput(WAITS, place_of(row) .. row[ID], 0)
  end
end

local function remove_waiting(row)
  if row[DEADLINE] < INF then
    zdrop(DEADLINES, row[ID])
  end
  if meta.sheds == 1 then
    zdrop(WAITS, place_of(row) .. row[ID])
  end
end

local function forget_task(id)
  cache[id], dirty[id] = false, nil
  forgotten[id] = true
  zdrop(SEQUENCES, id)
  for _, kind in ipairs({'b', 's', 'c', 'p', 'r'}) do
    put(BLOBS, kind .. id, false)
  end
end

-- Return the record of the attempts: five counts, and the last attempts. nil if it cannot be read.
local function story_of(row)
  if bit.band(row[HAS], STORY) == 0 then
    return {0, 0, 0, 0, 0, {}}
  end
  local readable, story = pcall(function()
    local story = unpacked(read(BLOBS, 's' .. row[ID]))
    for index = 1, 5 do
      if not (0 <= story[index] and story[index] < EXACT) then
        return nil
      end
    end
    return #story[6] >= 0 and type(story[6]) == 'table' and story
  end)
  return readable and story or nil
end

local function keep_blob(row, kind, flag, value)
  if value then
    put(BLOBS, kind .. row[ID], value)
    row[HAS] = bit.bor(row[HAS], flag)
  elseif bit.band(row[HAS], flag) > 0 then
    put(BLOBS, kind .. row[ID], false)
    row[HAS] = row[HAS] - flag
  end
end

-- Fields of `side` with a time of deletion

local function keep_until(field, value, ends)
  put(SIDE, field, value)
  if ends < INF then
    zput(ENDS, field, ends)
  else
    zdrop(ENDS, field)
  end
end
