-- Fair queueing between tenants, by the rules of `tasks/_stores/_fair_queue.py`. The virtual times are one field of `side`.
-- The virtual ends of tenants are a zset that exists only while they matter. A line is a priority class.

local start_of_new, virtual_time_of, started, prune_tenants

do
  local lines, moved = nil, false -- lines: virtual times, by line

  local function line_of(row)
    return string.format('%.0f', row[PRIORITY]) .. (row[DEADLINE] < INF and 'd' or '')
  end

  -- Whether any task has a tenant.
  local function shared()
    return meta.top > meta.floor
  end

  local function load_lines()
    if not lines then
      local readable, stored = pcall(function()
        local stored = unpacked(shared() and read(SIDE, 't') or '')
        for line, virtual in pairs(stored) do
          stored[line] = '' <= line and 0 <= virtual and virtual < EXACT and virtual or nil
        end
        return stored
      end)
      lines = readable and stored or {}
    end
  end

  function virtual_time_of(row)
    load_lines()
    return lines[line_of(row)] or meta.floor
  end

  local function end_of(member)
    local fresh = scores[TENANTS] and scores[TENANTS][member]
    local ends = fresh or tonumber(redis.call('ZSCORE', TENANTS, member) or 0)
    return ends < EXACT and ends or 0
  end

  function start_of_new(row)
    if not row[TENANT] and not shared() then
      return meta.floor
    end
    local line, virtual = line_of(row), virtual_time_of(row)
    local member = line .. ':' .. (row[TENANT] or '')
    local turn = math.max(virtual, end_of(member))
    local ends = turn + 1 / (row[WEIGHT] or 1)
    zput(TENANTS, member, ends)
    set('top', math.max(meta.top, ends))
    if not lines[line] then
      lines[line] = virtual
      put(SIDE, 't', pack(lines))
    end
    return turn
  end

  -- Handle that a task was claimed.
  function started(row)
    if not shared() then
      return
    end
    load_lines()
    local line, turn = line_of(row), row[TURN] or 0
    if turn > (lines[line] or INF) then
      lines[line], moved = turn, true
    end
  end

  -- Delete tenants that no longer matter, at the end of a claim. No caller waits for this change.
  function prune_tenants()
    if not shared() then
      return
    end
    local sooner = changed
    if count(READY) == 0 then
      set('floor', meta.top)
      put(SIDE, 't', false)
      scores[TENANTS], lines = nil, {}
      redis.call('DEL', TENANTS)
    elseif moved then
      local first = INF -- of all priority classes, more than each needs
      for _, virtual in pairs(lines) do
        first = math.min(first, virtual)
      end
      put(SIDE, 't', pack(lines))
      write_zset(TENANTS)
      redis.call('ZREMRANGEBYSCORE', TENANTS, '-inf', exact(first))
    end
    changed = sooner
  end
end
