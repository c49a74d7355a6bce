-- control: begin or end a pause, change the limits, or lower the remaining amounts to those that a service reports.
--
-- ARGV[2] is any of {pause: microseconds, resume, limits: {rows, permits, numbers}, left: by limit, -1 for unknown,
-- version}. Answers {pause: the microseconds that are left, report...}.

if op.limits then
  state.own, state.version = op.limits, state.version + 1
  rows, permits = op.limits[1], op.limits[2]
  for i = 1, count do
    meter.step(i)
  end
end
if op.resume then
  state.pause = min(state.pause, 0)
end
if op.pause then
  state.pause = max(state.pause, op.pause)
end
for i = 1, count do
  local excess = op.left and op.left[i] >= 0 and meter.remaining(i) - op.left[i] or 0
  if excess > 0 then
    meter.charge(i, excess, 0, 'service:' .. whole(now))
  end
end
advance()
save()
return pack(report({pause = max(0, state.pause)}))
