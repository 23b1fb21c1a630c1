// How figures are written.

const number = new Intl.NumberFormat("en");
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

/** What stands where something is not known. */
export const UNKNOWN = "\u2013";

const known = value => value !== undefined && value !== null;

/** @param {number | undefined} value */
export function count(value) {
  return known(value) ? number.format(value) : UNKNOWN;
}

/** Percent of one core. */
export function percent(value) {
  return known(value) ? `${value.toFixed(value < 100 ? 1 : 0)} %` : UNKNOWN;
}

/** Bytes, in the largest unit of which there is one. */
export function size(value) {
  if (!known(value)) return UNKNOWN;
  if (value < 1024) return `${value} B`;
  let rest = value;
  for (const unit of ["KB", "MB"]) {
    rest /= 1024;
    if (rest < 1024) return `${rest < 100 ? rest.toFixed(1) : rest.toFixed(0)} ${unit}`;
  }
  return `${(rest / 1024).toFixed(1)} GB`;
}

/** Messages a second. */
export function rate(value) {
  if (!known(value)) return UNKNOWN;
  return value < 10 && value > 0 ? value.toFixed(1) : number.format(Math.round(value));
}

/** A duration in seconds, in its two largest units. */
export function duration(value) {
  if (!known(value)) return UNKNOWN;
  const seconds = Math.max(0, Math.floor(value));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${String(seconds % 60).padStart(2, "0")} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** How long ago a moment is, which is given in seconds since 1970. */
export function since(moment) {
  return known(moment) ? duration(Date.now() / 1000 - moment) : UNKNOWN;
}

/** A moment as a time of day, with the day if that is not today. */
export function time(moment) {
  if (!known(moment)) return UNKNOWN;
  const date = new Date(moment * 1000);
  const today = date.toDateString() === new Date().toDateString();
  return today ? clock.format(date) : `${day.format(date)} ${clock.format(date)}`;
}

/** @param {number} amount @param {string} noun */
export function plural(amount, noun) {
  return `${number.format(amount)} ${noun}${amount === 1 ? "" : "s"}`;
}
