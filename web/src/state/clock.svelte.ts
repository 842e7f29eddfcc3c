/** The present time in seconds, so that "3 min ago" stays true while a page is open. */
class Clock {
  now = $state(Date.now() / 1000);

  constructor() {
    setInterval(() => (this.now = Date.now() / 1000), 15000);
  }
}

export const clock = new Clock();
