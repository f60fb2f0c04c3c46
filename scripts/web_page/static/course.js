// The course's page: terms explain themselves; what scrolls is reached by keyboard; saved widgets
// are pictures of the lab. Without this script terms lead to the glossary.
(() => {
  const tip = document.createElement("div");
  let shown = null;

  function show(link) {
    const known = window.courseTerms[link.dataset.term];
    if (!known || shown === link) return;
    hide();
    const name = document.createElement("b");
    name.textContent = known.term;
    const chinese = document.createElement("span");
    chinese.lang = "zh";
    chinese.textContent = known.zh;
    tip.replaceChildren(name, " · ", chinese, document.createElement("br"), known.says);
    tip.hidden = false;
    const at = link.getClientRects()[0];
    const most = document.documentElement.clientWidth - tip.offsetWidth - 8;
    const below = at.bottom + 6 + tip.offsetHeight < window.innerHeight;
    tip.style.left = `${Math.max(8, Math.min(at.left, most)) + window.scrollX}px`;
    tip.style.top = `${(below ? at.bottom + 2 : at.top - tip.offsetHeight - 2) + window.scrollY}px`;
    link.setAttribute("aria-describedby", "term-tip");
    shown = link;
  }

  function hide() {
    if (shown) shown.removeAttribute("aria-describedby");
    tip.hidden = true;
    shown = null;
  }

  // What is wider than its place can be scrolled by the arrow keys once it has the focus.
  function reachable() {
    const wide = "pre, .table-wrapper, .lab-widget, mjx-container[display=true], .sig";
    for (const part of document.querySelectorAll(`article :is(${wide})`)) {
      if (part.scrollWidth > part.clientWidth + 1) part.tabIndex = 0;
      else part.removeAttribute("tabindex");
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    // The widgets' script asks for MathJax 2 where it finds any; formulas are not its business.
    if (window.MathJax) window.MathJax.Hub ??= { Queue() {} };
    Object.assign(tip, { id: "term-tip", hidden: true });
    tip.setAttribute("role", "tooltip");
    document.body.append(tip);
    const term = (event) => event.target.closest?.("a.term");
    const on = (event) => term(event) && show(term(event));
    document.addEventListener("mouseover", (event) => {
      if (term(event)) show(term(event));
      else if (!tip.contains(event.target)) hide();
    });
    document.addEventListener("focusin", (event) => (term(event) ? on(event) : hide()));
    document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
    document.addEventListener("toggle", reachable, true); // a folded cell was opened
    window.addEventListener("resize", reachable);
    window.addEventListener("load", reachable);
    new ResizeObserver(reachable).observe(document.querySelector("article") ?? document.body);
    reachable();
  });
})();
