-- Renew leases, or only check them. Arguments: {worker, seconds or -1 to check only, id, epoch, id, epoch, ...}. Answer: for
-- each lease 0 if it is held, 1 if the task is being cancelled, 2 if it is lost.

local asked = unpacked(ARGV[4])
local worker, seconds, ids = asked[1], asked[2], {}
answer = {}
for index = 3, #asked, 2 do
  ids[#ids + 1] = asked[index]
end
load(ids)
local sooner = changed
for index, id in ipairs(ids) do
  local row = cache[id]
  if not row or row[STATE] ~= IN_FLIGHT or row[EPOCH] ~= asked[2 * index + 2] or row[WORKER] ~= worker then
    answer[index] = 2
  else
    answer[index] = row[CANCELLING] == 1 and 1 or 0
    if seconds >= 0 then
      -- No caller waits for a longer lease.
      makes_claimable = makes_claimable or now + seconds < row[DUE]
      row[DUE], row[HAS] = now + seconds, bit.band(row[HAS], HANDED - 1)
      save(row)
      zput(LEASES, id, row[DUE])
    end
  end
end
changed = sooner or makes_claimable
