// What a story is told with, and what comes of it; the test compares it.

export interface Told {
  url: string;
  anna: { email: string; password: string };
  ben: { email: string; password: string };
}

declare const process: { argv: string[]; exitCode: number };

/** Tell a story, and write what has come of it for the test to read. */
export function tell(story: (told: Told) => Promise<Record<string, unknown>>): void {
  story(JSON.parse(process.argv[2])).then(
    (seen) => console.log(JSON.stringify(seen)),
    (error) => {
      console.error(error);
      process.exitCode = 1;
    },
  );
}

/** Return how many days lie between two times. */
export function days(from: string, to: string): number {
  return Math.floor((Date.parse(to) - Date.parse(from)) / 86_400_000);
}

/** Return a value that must be there. */
export function given<T>(value: T | undefined, about: unknown): T {
  if (value === undefined) throw new Error(`nothing: ${JSON.stringify(about)}`);
  return value;
}
