-- Tasks

local cache, dirty, forgotten = {}, {}, {}
local condemn, stray -- of tasks that cannot be read, see `tasks.lua`
local remove

-- Whether it is one: what is not damaged as a whole is not damaged.
local function sound(row, id)
  return type(row) == 'table' and row[ID] == id and type(row[SEQ]) == 'number' and type(row[TTL]) == 'number'
    and HOME[row[STATE]] ~= nil
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
    local last = math.min(first + 999, #wanted)
    local found = redis.call('HMGET', ROWS, unpack(wanted, first, last))
    for index = first, last do
      local raw, id = found[index - first + 1], wanted[index]
      if raw then
        local readable, row = pcall(unpacked, raw)
        if readable and sound(row, id) then
          cache[id] = row
          if row[STATE] > IN_FLIGHT and row[STATE] ~= DEAD_LETTER and row[DUE] < now then
            remove(row) -- its time to live is over
          end
        else
          condemn(id, 'its row in the store cannot be read')
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

local function enter(row)
  local state = row[STATE]
  if state == PENDING then
    zput(READY, member_of(row), 0)
  elseif state == PARKED or state == DEAD_LETTER then
    zput(HOME[state], row[ID], row[SEQ])
  else
    zput(HOME[state], row[ID], row[DUE])
  end
  stirs = stirs or state < PARKED
end

local function leave(row)
  local state = row[STATE]
  if state == PENDING then
    zdrop(READY, member_of(row))
  else
    zdrop(HOME[state], row[ID])
  end
end

local function wait(row)
  if row[DEADLINE] < INF then
    zput(DEADLINES, row[ID], row[DEADLINE])
  end
  if meta.sheds == 1 then
    zput(WAITS, place_of(row) .. row[ID], 0)
  end
end

local function wait_no_more(row)
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

local function story_of(row)
  if bit.band(row[HAS], STORY) == 0 then
    return {0, 0, 0, 0, 0, {}}
  end
  local readable, story = pcall(unpacked, read(BLOBS, 's' .. row[ID]))
  if readable and type(story) == 'table' and type(story[6]) == 'table' then
    return story
  end
  return {0, 0, 0, 0, 0, {{kind = 'crash', at = now, error = 'its story in the store cannot be read'}}}
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

-- Fields of `side` that end by themselves

local function keep_until(field, value, ends)
  put(SIDE, field, value)
  if ends < INF then
    zput(ENDS, field, ends)
  else
    zdrop(ENDS, field)
  end
end
