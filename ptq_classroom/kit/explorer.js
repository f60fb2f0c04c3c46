// What ipywidgets lets no Python say: names, values with their unit, one live region. Attributes of
// the explorer's own elements only; where a page strips scripts, the note stays and all else works.
(() => {
  const { mark, title, note, sliders } = EXPLORER;
  const script = document.currentScript;
  const home = (script && script.closest(".jp-OutputArea, .output")) || document.body;
  const written = new WeakMap(); // element -> the value that we gave it
  const set = (element, name, value) => {
    if (element && element.getAttribute(name) !== value) element.setAttribute(name, value);
  };

  const said = ({ log, digits, unit }, position) => {
    const value = log ? 10 ** position : position;
    const places = log ? Math.max(0, digits - 1 - Math.floor(Math.log10(value))) : digits;
    return String(Number(value.toFixed(places))) + (unit ? ` ${unit}` : "");
  };
  // A slider writes its bare number at each move: 1.2999999999999998, or a logarithm.
  const speak = (handle, slider) => {
    const now = handle.getAttribute("aria-valuetext");
    if (now === null || now === written.get(handle)) return;
    written.set(handle, said(slider, parseFloat(now)));
    set(handle, "aria-valuetext", written.get(handle));
  };
  const improve = (box) => {
    set(box, "role", "group");
    set(box, "aria-label", title);
    const status = box.querySelector(".ptq-readout .widget-html-content");
    set(status, "role", "status"); // stays while its text changes: screen readers read that out
    set(status, "aria-atomic", "true");
    box.querySelectorAll(".noUi-handle").forEach((handle, i) => {
      set(handle, "aria-label", sliders[i].label);
      speak(handle, sliders[i]);
    });
    box.querySelectorAll(".widget-radio").forEach((choice, i) => {
      const [label, group] = choice.children;
      set(group, "role", "radiogroup");
      set(group, "aria-label", label && label.textContent);
      const radios = choice.querySelectorAll("input"); // one group: the arrow keys choose in it
      radios.forEach((radio) => set(radio, "name", `${mark}-${i}`));
    });
    box.querySelectorAll('[title="null"]').forEach((label) => label.removeAttribute("title"));
  };
  const look = () => {
    const boxes = [...home.querySelectorAll(`.${mark}`)];
    boxes.forEach(improve);
    const alive = boxes.some((box) => !box.classList.contains("jupyter-widgets-disconnected"));
    home.querySelectorAll(`.${note}`).forEach((element) => { element.hidden = alive; });
  };
  // These keys move the control that has the focus, not the notebook's selected cell.
  const keys = ({ target, key, ctrlKey, metaKey }) => {
    const moved = target.closest && target.closest(".noUi-handle, input[type=radio]");
    if (!moved || !moved.closest(`.${mark}`)) return;
    const ours = /^(Arrow|Page|Home|End)/.test(key) && !ctrlKey && !metaKey;
    moved.toggleAttribute("data-lm-suppress-shortcuts", ours);
  };
  window.addEventListener("keydown", keys, true); // before JupyterLab, on document
  const what = { childList: true, subtree: true, attributeFilter: ["aria-valuetext", "class"] };
  new MutationObserver(look).observe(home, what);
  look();
})();
