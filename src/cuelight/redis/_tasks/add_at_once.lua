-- add_at_once: adds plain tasks before the script creates the functions of the general form, which takes longer than adding
-- them. A plain task has no limits, unique key, tenant or deadline, is due now, and is new; and its queue is open, has room
-- and no tenants, sheds nothing, and is not at rest. Anything else, damage too, is left to the general form that follows,
-- with nothing written.
--
-- It writes and answers the same as `insert` and `commit.lua`; a test runs both and compares.

local function add_plain_tasks()
  local asked = cmsgpack.unpack(ARGV[4])
  local cards, most = asked[1], asked[2]
  if #cards == 0 or #cards > 500 then
    return
  end
  -- In the order of `keys.lua`: the whole numbers, then the others.
  local meta, sum = redis.call('HMGET', META, 'format', 'sequence', 'lanes', 'version', 'stirred', 'hungry', 'watched',
    'paused', 'closed', 'sheds', 'overrides', 'resting', 'time', 'rested', 'floor', 'top'), 0
  for index = 1, 16 do
    local number = tonumber(meta[index] or 0)
    if not number or number < 0 or (index < 13 and number % 1 ~= 0) then
      return
    end
    meta[index], sum = number, sum + number
  end
  local sequence, turn = meta[2], meta[15]
  if meta[1] ~= FORMAT or meta[9] + meta[10] + meta[12] > 0 or meta[16] > turn or not (sum < EXACT) or meta[3] >= LANES then
    return
  end
  local now = tonumber(ARGV[1])
  if not now then
    local clock = redis.call('TIME')
    now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
  end
  if meta[13] - 60 < now and now < meta[13] then
    now = meta[13]
  end
  local ids, new = {}, {}
  for index = 1, #cards do
    local row = cards[index]
    local id = row[ID]
    if row[UNIQUE] or row[LIMITS] or row[TENANT] or row[ENDED] > 0 or row[DUE] > now or row[DEADLINE] < INF
      or row[PRIORITY] < 0 or new[id] then
      return
    end
    ids[index], new[id] = id, true
  end
  if most >= 0
    and redis.call('ZCARD', READY) + redis.call('ZCARD', DELAYED) + redis.call('ZCARD', PARKS) + #ids > most then
    return
  end
  local stored = redis.call('HMGET', ROWS, unpack(ids))
  for index = 1, #ids do
    if stored[index] then
      return
    end
  end
  local rows, blobs, ready, sequences, answer = {}, {}, {}, {}, {}
  for index = 1, #ids do
    local row, id, first = cards[index], ids[index], 2 * index - 1
    local second = first + 1
    sequence = sequence + 1
    row[SEQ], row[TURN], row[STATE], row[DUE], row[ENDED] = sequence, turn, PENDING, 0, 0
    blobs[first], blobs[second] = 'b' .. id, ARGV[4 + index]
    ready[first] = 0
    ready[second] = 'p1' .. struct.pack('>d', row[PRIORITY] + 0) .. '1' .. struct.pack('>ddd', INF, turn, sequence) .. id
    sequences[first], sequences[second] = sequence, id
    answer[first], answer[second] = 'added', id
  end
  local version, stirred = meta[4] + 1, meta[5] + 1
  local claim = meta[6] == 1 and meta[8] == 0 and #ids == 1 and redis.call('EXISTS', READY) == 0
    and hand_over(cards[1], blobs[2], now)
  if claim then
    local row, id = cards[1], ids[1]
    local ends = string.format('%.17g', row[DUE])
    redis.call('ZADD', LEASES, ends, id)
    redis.call('HSET', SIDE, 'c' .. claim[1], cmsgpack.pack({id, row[EPOCH]}))
    redis.call('ZADD', ENDS, ends, 'c' .. claim[1])
    meta[6], stirred = 0, meta[5] -- no other caller is notified
  else
    redis.call('ZADD', READY, unpack(ready))
  end
  for index = 1, #ids do
    rows[2 * index - 1], rows[2 * index] = ids[index], cmsgpack.pack(cards[index])
  end
  redis.call('HSET', ROWS, unpack(rows))
  redis.call('ZADD', SEQUENCES, unpack(sequences))
  redis.call('HSET', BLOBS, unpack(blobs))
  redis.call('HSET', META, 'sequence', string.format('%.17g', sequence), 'version', string.format('%.17g', version),
    'stirred', string.format('%.17g', stirred), 'time', string.format('%.17g', now))
  if meta[6] == 1 or meta[7] == 1 then
    redis.call(ARGV[3], ARGV[2], string.format('%.0f %.0f', version, stirred))
    redis.call('HSET', META, unpack(meta[6] ~= 1 and {'watched', '0'} or meta[7] ~= 1 and {'hungry', '0'}
      or {'hungry', '0', 'watched', '0'}))
  end
  return {'', cmsgpack.pack({now, version, stirred, answer})}
end

local taken = add_plain_tasks()
if taken then
  return taken
end
