-- Changes by operators, and values saved by a running attempt. Arguments: {which, nonce or "", arguments}. With a nonce,
-- the answer is remembered for a while: the same step sent again returns the same answer and changes nothing.

local PARKED_AT_ONCE = 1000
local asked = unpacked(ARGV[4])
local nonce, changes = asked[2], {}

-- {id, epoch, progress, checkpoint}: true for each that is sent as bytes, in this order -> whether it was stored.
function changes.save(id, epoch, progress, checkpoint)
  local row = row_of(id)
  if not row or row[STATE] ~= IN_FLIGHT or row[EPOCH] ~= epoch then
    return false
  end
  local had = row[HAS]
  if progress then
    keep_blob(row, 'p', PROGRESS, ARGV[5])
  end
  if checkpoint then
    keep_blob(row, 'c', CHECKPOINT, ARGV[progress and 6 or 5])
  end
  if row[HAS] ~= had then
    save(row)
  end
  return true
end

local function cancel(row)
  if not row then
    return 'unknown'
  elseif row[STATE] == IN_FLIGHT then
    if row[CANCELLING] == 0 then
      row[CANCELLING] = 1
      save(row)
    end
    return 'cancelling'
  elseif row[STATE] < IN_FLIGHT then
    apply(row, CANCELLED)
  end
  return row[STATE] == CANCELLED and 'cancelled' or 'finished'
end

function changes.cancel(ids)
  local answer = {}
  load(ids)
  for index, id in ipairs(ids) do
    answer[index] = cancel(cache[id])
  end
  return answer
end

-- {types as keys, after} -> the number of tasks, and where to continue; -1 at the end.
function changes.unpark(types, after)
  local ids = redis.call('ZRANGEBYSCORE', PARKS, '(' .. exact(after), '+inf', 'LIMIT', 0, PARKED_AT_ONCE)
  local number, last = 0, -1
  load(ids)
  for _, id in ipairs(ids) do
    local row = cache[id]
    if row and row[STATE] == PARKED then
      last = row[SEQ]
      if types[row[TYPE]] then
        change_state(row, PENDING)
        number = number + 1
      end
    else
      drop_stale(PARKS, id, id)
    end
  end
  return {number, #ids == PARKED_AT_ONCE and last or -1}
end

function changes.control(paused, closed)
  for name, wanted in pairs({paused = paused, closed = closed}) do
    if wanted >= 0 and meta[name] ~= wanted then
      set(name, wanted)
      changed, makes_claimable = true, true
    end
  end
  return true
end

function changes.set_limit(key, limit)
  local limit_state = limit_state_of(key)
  set('overrides', meta.overrides + (limit and 1 or 0) - (limit_state[OVERRIDE] and 1 or 0))
  limit_state[OVERRIDE], makes_claimable = limit, true
  save_limit_state(key, limit_state)
  update_limit(key)
  return true
end

function changes.pause_limit(key, seconds)
  makes_claimable = true
  pause_limit(key, seconds)
  return true
end

-- A schedule is {spec, due, row, record, due time that was fired last}.

local function unpacked_schedule(raw)
  local kept = unpacked(raw)
  return '' <= kept[1] and -LATEST < kept[2] and kept[2] < LATEST and '' <= kept[3][ID] and 0 <= kept[3][ENDED]
    and -LATEST < kept[3][DUE] and (not kept[3][UNIQUE] or '' <= kept[3][UNIQUE]) and '' <= kept[4] and kept
end

-- Return a schedule; nil if there is none, or it cannot be read.
local function schedule_named(name)
  local raw = read(SCHEDULES, name)
  if raw then
    local readable, kept = pcall(unpacked_schedule, raw)
    return readable and kept or nil
  end
end

function changes.put_schedule(name, spec, due_at, row)
  local stored = schedule_named(name)
  if stored and stored[1] == spec then
    due_at = stored[2]
  end
  put(SCHEDULES, name, pack({spec, due_at, row, ARGV[5]}))
  return true
end

function changes.remove_schedule(name)
  if not read(SCHEDULES, name) then
    return false
  end
  put(SCHEDULES, name, false)
  return true
end

-- Returns nil if the queue is closed.
function changes.fire(name, due_at, next_due)
  local stored = schedule_named(name)
  if not stored or stored[2] ~= due_at then
    return false
  elseif meta.closed ~= 0 then
    return nil
  end
  local row, delay = stored[3], stored[3][ENDED]
  row[ID], row[NONCE], row[CREATED] = string.format('%s@%.3f', row[ID], due_at), '', now
  if not row_of(row[ID]) and not (row[UNIQUE] and unique_owner(row[UNIQUE])) then
    row[ENDED] = 0
    if delay > 0 then
      row[DUE] = (row[DUE] ~= 0 and row[DUE] or now) + delay
    end
    row[SEQ], row[STATE] = 1, PENDING
    local readable, is_sound = pcall(sound, row, row[ID])
    if not (readable and is_sound) then
      return false
    end
    insert(row, stored[4])
  end
  local kept = unpacked(read(SCHEDULES, name))
  kept[2] = next_due
  put(SCHEDULES, name, pack(kept))
  return true
end

local function replay(row)
  if not row or row[STATE] ~= DEAD_LETTER then
    return false
  end
  row[REASON], row[ENDED] = '', 0
  if bit.band(row[HAS], STORY) > 0 then
    local story = story_of(row)
    keep_blob(row, 's', STORY, story and pack({0, 0, 0, 0, 0, story[6]}))
  end
  keep_blob(row, 'p', PROGRESS, nil)
  if row[DEADLINE] <= now then
    row[DEADLINE], places[row[ID]] = INF, nil
    row[TURN] = math.min(row[TURN] or 0, virtual_time_of(row))
  end
  if row[UNIQUE] and row[UNIQUE_FOR] < 0 then
    if not unique_owner(row[UNIQUE]) then
      hold_unique(row[UNIQUE], row[ID], INF)
    end
  end
  change_state(row, PENDING)
  return true
end

function changes.replay(ids)
  local answer = {}
  load(ids)
  for index, id in ipairs(ids) do
    answer[index] = replay(cache[id])
  end
  return answer
end

function changes.edit(id)
  local row, blob = row_of(id), read(BLOBS, 'b' .. id)
  if not row or not blob or not (row[STATE] == DEAD_LETTER or (row[STATE] < IN_FLIGHT and row[EPOCH] == 0)) then
    return false
  end
  put(BLOBS, 'b' .. id, string.sub(blob, 1, 4 + struct.unpack('>I4', blob)) .. ARGV[5])
  return true
end

function changes.purge(ids)
  local number = 0
  load(ids)
  for _, id in ipairs(ids) do
    local row = cache[id]
    if row and row[STATE] > IN_FLIGHT then
      remove(row)
      number = number + 1
    end
  end
  return number
end

-- Make tasks that the client cannot decode dead letters. Their rows are in ARGV; `parts` names the unreadable part of
-- each, "row", "record" or "story" (its attempts), and `whys` the reason. A task whose row has changed is skipped.
function changes.dead_letter_corrupt(parts, whys)
  for index, part in ipairs(parts) do
    local raw = ARGV[4 + index]
    local readable, id = pcall(function()
      local id = unpacked(raw)[ID]
      local stored = redis.call('HGET', ROWS, id)
      return (stored == raw or pack(unpacked(stored)) == raw) and id
    end)
    local row = readable and id and row_of(id)
    if row and part == 'row' then
      cache[id] = false
      broken[#broken + 1] = {'row', id, raw, whys[index]}
    elseif row and row[STATE] ~= DEAD_LETTER then
      dead_letter_row(row, whys[index], part == 'story' and read(BLOBS, 's' .. id))
    end
  end
  return true
end

-- A store was closed.
function changes.leave()
  return true
end

local earlier = nonce ~= '' and answered(nonce)
if earlier then
  answer = earlier[1]
else
  answer = changes[asked[1]](unpack(asked[3], 1, 4))
  if answer == nil then
    return {'closed', ''}
  end
  if nonce ~= '' then
    remember(nonce, answer)
  end
  tidy = asked[1] == 'save' and 'idle' or 'now'
end
