-- Finish attempts, then claim tasks. Arguments: {finishes, claim}; a finish is {id, epoch, kind, delay, result, attempt,
-- pause_key}: result is the number of its bytes or 0, attempt and pause_key are false for none; a claim is false or
-- {worker, nonce, most, lease, channel, earlier, confirmed}: the channel in which the worker waits for a task if the claim
-- finds none, or false; its earlier claims that wait for one, each as a member of `idle`; and id, epoch, id, epoch, ...
-- of the tasks that were handed over to it since, see `hand_over.lua`. Answer: {outcomes, wake_at, hungry}; then for each
-- lease its row, record, story and checkpoint, "" for none.

local SWEEP, IN_VAIN, CHUNK, MOST_LEASES = 300, 256, 250, 1000
local asked = unpacked(ARGV[4])
local finishes, claim = asked[1], asked[2]
local outcomes, leased, wake_at, hungry = {}, {}, INF, false

local function finish_attempt(finish)
  local row, epoch, kind = row_of(finish[1]), finish[2], finish[3]
  if not row then
    return -1
  end
  if row[STATE] ~= IN_FLIGHT or row[EPOCH] ~= epoch then
    local same = row[SETTLED] == epoch and epoch ~= 0 and math.floor(row[STEP] / KINDS) == kind
    return same and row[STEP] % KINDS or -1
  end
  local attempt = finish[6]
  if not attempt and kind ~= IS_DONE and kind ~= IS_UNKNOWN then
    attempt = {kind = NAMES[kind], worker = row[WORKER], at = now}
  end
  local story = record_attempt(row, kind, attempt)
  if story == false then
    dead_letter_row(row)
    return row[STATE]
  end
  local state, ends, reason = outcome_of(row, kind, finish[4], story)
  if state == COMPLETED or state == CANCELLED then
    keep_blob(row, 'c', CHECKPOINT, nil)
  end
  row[SETTLED], row[STEP] = epoch, kind * KINDS + state
  keep_blob(row, 'r', RESULT, kind == IS_DONE and finish[5] > 0 and ARGV[4 + finish[5]] or nil)
  apply(row, state, ends, reason)
  if kind == IS_RATE_LIMITED and finish[7] then
    pause_limit(finish[7], finish[4])
  end
  return state
end

-- Tasks that are due

-- Take a step for each task of a state that is due. Returns the number of tasks that were read.
local function sweep_tasks(key, fits, step)
  local ids = due(key, SWEEP)
  load(ids)
  for _, id in ipairs(ids) do
    local row = cache[id]
    if row and fits(row) then
      step(row)
    else
      drop_stale(key, id, id)
    end
  end
  return #ids
end

local function forget()
  for _, key in ipairs({DONE, CANCELS}) do
    local ids = due(key, SWEEP, '(')
    load(ids) -- which removes them
    for _, id in ipairs(ids) do
      if cache[id] or not forgotten[id] then
        drop_stale(key, id, id)
      end
    end
  end
  for _, field in ipairs(due(ENDS, 2 * SWEEP, '(')) do
    zdrop(ENDS, field)
    if string.find(field, '^[ucn]') then
      put(SIDE, field, false)
    end
  end
end

-- Process everything that is due. Returns whether something may be left.
local function sweep()
  local most = sweep_tasks(LEASES, function(row) return row[STATE] == IN_FLIGHT and row[DUE] <= now end, crash)
  most = math.max(most, sweep_tasks(DELAYED, function(row) return row[STATE] == SCHEDULED and row[DUE] <= now end, function(row)
    change_state(row, PENDING)
  end))
  most = math.max(most, sweep_tasks(DEADLINES, function(row) return row[STATE] < IN_FLIGHT and row[DEADLINE] <= now end, expire))
  local opened = due(GATES, SWEEP)
  for _, key in ipairs(opened) do
    update_limit(key)
  end
  forget()
  return math.max(most, #opened) >= SWEEP
end

-- The next tasks

local fruitless, plain, next_plain, more = 0, {}, 1, true

-- Return the next pending task without limits. The tasks before it are no longer pending.
local function next_row(most)
  for _ = 1, 2 * MOST_LEASES + MOST_DROPPED do
    if next_plain > #plain then
      if not more then
        return nil
      end
      write_zset(READY)
      local wanted = math.min(CHUNK, most - #leased)
      plain, next_plain = redis.call('ZRANGEBYLEX', READY, '[p', '(q', 'LIMIT', 0, wanted), 1
      more = #plain == wanted
      local ids = {}
      for index, member in ipairs(plain) do
        ids[index] = string.sub(member, PLACE + 2)
      end
      load(ids)
    end
    local member = plain[next_plain]
    if not member then
      return nil
    end
    next_plain = next_plain + 1
    local id = string.sub(member, PLACE + 2)
    local row = cache[id]
    if row and row[STATE] == PENDING and row[LANE] == 0 then
      places[id] = string.sub(member, 2, PLACE + 1) -- it is removed from where it was found
      return row
    end
    drop_stale(READY, member, id)
  end
end

local function lease_task(row)
  if row[DEADLINE] <= now then -- there are more of them than one claim processes
    expire(row)
    return false
  end
  row[EPOCH], row[WORKER] = row[EPOCH] + 1, claim[1]
  change_state(row, IN_FLIGHT, now + claim[4])
  started(row)
  leased[#leased + 1] = row
  return true
end

local function lease_first(limit_queue)
  local row = first_in(limit_queue[NUMBER])
  if not row then -- its tasks are missing: damage
    drop_limit_queue(limit_queue)
    return false
  end
  if limit_queue[HEAD][4] ~= row[SEQ] then -- as above
    limit_queue[HEAD] = order_of_row(row)
    save_limit_queue(limit_queue)
  end
  if row[DEADLINE] > now then
    if must_wait(limit_queue, row) then
      return false
    end
    start_limits(row)
  end
  return lease_task(row)
end

-- Claim tasks. Returns whether it stopped before it had tried all claimable ones.
local function pick(most)
  local row, limit_queue = next_row(most), first_limit_queue('')
  while (row or limit_queue) and fruitless < IN_VAIN do
    local went
    if limit_queue and (not row or before(limit_queue[HEAD], order_of_row(row))) then
      went = lease_first(limit_queue)
      limit_queue = first_limit_queue('')
    else
      went, row = lease_task(row), nil
    end
    fruitless = went and fruitless or fruitless + 1
    if #leased == most then
      return false
    end
    row = row or next_row(most)
  end
  return fruitless >= IN_VAIN
end

local function next_due()
  write_zsets()
  local first = INF
  for _, key in ipairs({DELAYED, LEASES, DEADLINES, GATES}) do
    first = math.min(first, tonumber(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2] or INF))
  end
  return first
end

local function keep_claim()
  local kept = {}
  for _, row in ipairs(leased) do
    kept[#kept + 1] = row[ID]
    kept[#kept + 1] = row[EPOCH]
  end
  keep_until('c' .. claim[2], pack(kept), now + claim[4])
end

-- Renew the leases {id, epoch, id, epoch, ...} that the worker still holds.
local function renew(leases, step)
  local ids = {}
  for index = 1, #leases, 2 do
    ids[#ids + 1] = leases[index]
  end
  load(ids)
  for index = 1, #leases, 2 do
    local row = cache[leases[index]]
    if row and row[STATE] == IN_FLIGHT and row[WORKER] == claim[1] and row[EPOCH] == leases[index + 1] then
      row[DUE], row[HAS] = math.max(row[DUE], now + claim[4]), bit.band(row[HAS], HANDED - 1)
      save(row)
      zput(LEASES, row[ID], row[DUE])
      if step then
        step(row)
      end
    end
  end
end

-- Return leases again whose answer was lost, for their full time.
local function lease_again(leases)
  renew(leases, function(row) leased[#leased + 1] = row end)
end

-- Return the leases of an earlier claim with this nonce.
local function leased_before(nonce)
  local raw = read(SIDE, 'c' .. nonce)
  local readable, stored = pcall(unpacked, raw or '')
  return raw and readable and type(stored) == 'table' and stored or nil
end

-- End the waits of the worker's earlier claims. A task that was handed over and not confirmed is leased again: the message
-- was lost, or arrives too late.
local function stop_waiting()
  local was_changed = changed
  renew(claim[7])
  changed = was_changed -- no caller waits for a longer lease
  for _, earlier in ipairs(claim[6]) do
    local leases = leased_before(earlier[1])
    redis.call('ZREM', IDLE, pack(earlier))
    if leases then
      put(SIDE, 'c' .. earlier[1], false)
      zdrop(ENDS, 'c' .. earlier[1])
      local row = row_of(leases[1])
      if row and bit.band(row[HAS], HANDED) > 0 then
        lease_again(leases)
      end
    end
  end
end

-- Let the next task that is added be handed over to the worker.
local function wait_for_task()
  redis.call('ZADD', IDLE, exact(now), pack({claim[2], claim[4], claim[5], claim[1]}))
  redis.call('EXPIRE', IDLE, WAITS_FOR)
end

local function serve()
  local earlier = leased_before(claim[2])
  if earlier then
    lease_again(earlier)
    keep_claim()
    return next_due()
  end
  stop_waiting()
  local unfinished, most = sweep(), math.min(claim[3], MOST_LEASES)
  if meta.paused == 0 and most > #leased then
    unfinished = pick(most) or unfinished or (#leased == MOST_LEASES and claim[3] > most)
  end
  if #leased > 0 then
    keep_claim()
  end
  prune_tenants()
  hungry = #leased < claim[3] and not unfinished
  if hungry and claim[5] and #leased == 0 then -- otherwise the handed over task would replace the leases of this claim
    wait_for_task()
  end
  return unfinished and now or next_due()
end

local ids = {}
for index, finish in ipairs(finishes) do
  ids[index] = finish[1]
end
load(ids)
for index, finish in ipairs(finishes) do
  outcomes[index] = finish_attempt(finish)
end
if claim then
  wake_at = serve()
end
answer, shown, kinds = {outcomes, wake_at, hungry}, leased, {'b', 's', 'c'}
wanting, tidy = hungry and 'hungry' or nil, hungry and #leased == 0 and 'idle' or nil

-- A claim that finds nothing looks for damage, once a minute. After repairs there may be something to claim.
if hungry and #leased == 0 and #finishes == 0 then
  local checked = tonumber(redis.call('HGET', META, 'checked') or now) or 0
  checks = not (checked <= now and now < checked + THROTTLE)
  if checked == now then
    set('checked', now)
  end
end
if claim then
  function run_again()
    answer, wanting, tidy = {outcomes, now, false}, nil, nil
  end
end
