// Light and dark: as the system has it, or as the reader chose.

import { byId, setText } from "./dom.js";
import { forgetColours } from "./plot.js";

const THEMES = ["auto", "light", "dark"];

/** Take over the choice remembered; `changed` is called whenever the colours are others. */
export function startTheme(remembered, remember, changed) {
  const button = byId("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  let theme = THEMES.includes(remembered("keyop-theme")) ? remembered("keyop-theme") : "auto";
  const apply = () => {
    document.documentElement.dataset.theme = theme;
    setText(button, `Theme: ${theme}`);
    forgetColours();
  };
  const choose = () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    remember("keyop-theme", theme === "auto" ? null : theme);
    apply();
    changed();
  };
  button.addEventListener("click", choose);
  system.addEventListener("change", () => {
    forgetColours();
    changed();
  });
  apply();
}
