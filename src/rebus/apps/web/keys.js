// Chips are one stop of the tab key, and arrows move among them, as in any group of radio buttons. The library gives every
// button a name of its own, so that the browser does not know that they belong together.
() => {
  const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  const chips = () => [...document.querySelectorAll('.chips input[type=radio]')];
  const settle = () => {
    const all = chips();
    const stop = all.find((chip) => chip.checked) ?? all[0];
    for (const chip of all) chip.tabIndex = chip === stop ? 0 : -1;
  };
  document.addEventListener('keydown', (press) => {
    const all = chips();
    const at = all.indexOf(press.target);
    if (at < 0) return;
    const ends = { Home: 0, End: all.length - 1 };
    const to = press.key in STEPS ? (at + STEPS[press.key] + all.length) % all.length : ends[press.key];
    if (to === undefined) return;
    press.preventDefault();
    all[to].focus();
    all[to].click();
    settle();
  });
  document.addEventListener('change', settle);
  new MutationObserver(settle).observe(document.body, { childList: true, subtree: true });
}
