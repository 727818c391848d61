"""The method's arithmetic as free functions: no model, no state, no configuration.

One idea per file: ``masked`` (reductions), ``sequences`` (masks and positions), ``kl`` (estimators), ``advantages``
(Eq. 5 and GAE), ``losses`` (PPO), ``risk`` (Eqs. 8-10, VaR, CVaR and the tail) and ``statistics`` (intervals for
evaluation). Symbols: B episodes, T response tokens, N values. Masks are bool and True means *counts*.
"""
