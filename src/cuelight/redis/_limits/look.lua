-- look: return the remaining amounts, and the time until such a request could be admitted.
--
-- ARGV[2] is {costs, version}. Answers {wait, waiting, held, report...}.

advance()
local wait = estimate(op.costs, state.waiting > 0 and state.asked or op.costs, state.turn + 1)
local held = permits > 0 and call('ZCARD', KEYS[5]) or 0
save()
return pack(report({wait = wait, waiting = state.waiting, held = held}))
