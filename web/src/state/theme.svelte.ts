/** Dark or light: what the system says until the user says otherwise; the choice stays in this browser. */

export type Theme = "system" | "light" | "dark";
const KEY = "loraloom.theme";

const system = matchMedia("(prefers-color-scheme: dark)");

class ThemeChoice {
  choice = $state<Theme>((localStorage.getItem(KEY) as Theme | null) ?? "system");
  #systemIsDark = $state(system.matches);
  dark = $derived(this.choice === "dark" || (this.choice === "system" && this.#systemIsDark));

  constructor() {
    system.addEventListener("change", (event) => (this.#systemIsDark = event.matches));
  }

  next(): void {
    this.choice = this.dark ? "light" : "dark";
    localStorage.setItem(KEY, this.choice);
  }
}

export const theme = new ThemeChoice();
