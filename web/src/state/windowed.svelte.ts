/** The rows of a long table that are near the window's view; room is kept for the others. */
import { observeWindowOffset, observeWindowRect, Virtualizer, windowScroll } from "@tanstack/virtual-core";

const ROW_PX = 57;
const FEW = 60;

export class WindowedRows {
  first = $state(0);
  end = $state(FEW);
  above = $state(0);
  below = $state(0);
  #virtual: Virtualizer<Window, HTMLElement>;

  constructor(count: () => number, body: () => HTMLElement | null) {
    const options = () => ({
      count: count(),
      getScrollElement: (): Window => window,
      estimateSize: () => ROW_PX,
      overscan: 12,
      scrollMargin: (body()?.getBoundingClientRect().top ?? 0) + window.scrollY,
      observeElementRect: observeWindowRect,
      observeElementOffset: observeWindowOffset,
      scrollToFn: windowScroll,
      onChange: () => this.#show(count()),
    });
    this.#virtual = new Virtualizer<Window, HTMLElement>(options());
    $effect(() => this.#virtual._didMount());
    $effect(() => {
      this.#virtual.setOptions(options());
      this.#virtual._willUpdate();
      this.#show(count());
    });
  }

  #show(count: number): void {
    const items = this.#virtual.getVirtualItems();
    const isLong = count > FEW && items.length > 0;
    this.first = isLong ? items[0]!.index : 0;
    this.end = isLong ? items.at(-1)!.index + 1 : Math.min(count, FEW);
    this.above = ROW_PX * this.first;
    this.below = ROW_PX * (count - this.end);
  }
}
