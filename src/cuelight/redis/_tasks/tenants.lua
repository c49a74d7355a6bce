-- Whose turn it is. The rules are those of `tasks/_stores/_fair_queue.py`; the virtual times are one field of `side`, and the ends
-- of tenants are a zset that is there only while they count.

local turn_of_new, virtual_of, started, settle_turns

do
  local lines, moved = nil, false -- lines: virtual times, by line

  local function line_of(row)
    return string.format('%.0f', row[PRIORITY]) .. (row[DEADLINE] < INF and 'd' or '')
  end

  -- Whether anybody has a tenant.
  local function shared()
    return meta.top > meta.floor
  end

  local function load_lines()
    if not lines then
      local readable, there = pcall(function()
        local there = unpacked(shared() and read(SIDE, 't') or '')
        for line, virtual in pairs(there) do
          there[line] = '' <= line and 0 <= virtual and virtual < EXACT and virtual or nil
        end
        return there
      end)
      lines = readable and there or {}
    end
  end

  function virtual_of(row)
    load_lines()
    return lines[line_of(row)] or meta.floor
  end

  local function end_of(member)
    local fresh = scores[TENANTS] and scores[TENANTS][member]
    local ends = fresh or tonumber(redis.call('ZSCORE', TENANTS, member) or 0)
    return ends < EXACT and ends or 0
  end

  function turn_of_new(row)
    if not row[TENANT] and not shared() then
      return meta.floor
    end
    local line, virtual = line_of(row), virtual_of(row)
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

  -- A task was claimed.
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

  -- A claim is over. What is forgotten here is no change that anybody waits for.
  function settle_turns()
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
      local first = INF -- of all lines: more than each needs
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
