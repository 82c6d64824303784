// Decides how far playback stays behind the newest media, and how fast it plays to keep that distance. Knows no element.
//
// What counts is the cushion: the least media that was ahead of the playback position lately. It is what protects
// against a stall. Media arrives in bursts of whole frames or more, so the mean says little.

const BASE_S = 0.25; // The cushion of a network without stalls.
const MOST_S = 3;
const STALL_STEP_S = 0.1; // A stall makes the cushion this much larger than would have been enough.
const OUTAGE_S = 2; // A longer stall is an interruption, against which no cushion helps.
const CALM_MS = 30_000; // Without a stall for this long, the cushion shrinks,
const SHRINK_PER_S = 0.02; // by this much per second.
const JUMP_S = 2.5; // Media that lies further behind is skipped, not played faster.
const TOLERANCE_S = 0.08; // Errors up to this size are left alone.
const SETTLED_S = 0.02; // A correction ends at this error.
const FASTEST = 1.1;
const SLOWEST = 0.93;
const GAIN = 0.2; // Speed for each second of error.
const STEPS = 100; // Speeds are hundredths: each change costs the browser work.
const SLOT_MS = 250;
const SLOTS = 6; // The window in which the least counts: 1.5 s.
const EDGE_SLOT_MS = 1000;
const EDGE_SLOTS = 10;

export class Latency {
    #cushionS = BASE_S;
    #slots = []; // [number of the slot, least media ahead in it]
    #edges = []; // [number of the slot, most that media was ahead of the clock in it, seconds]
    #correcting = false;
    #stalledMs = -Infinity;
    #shrunkMs = 0;

    // The distance to the newest media that playback should begin with.
    get cushionS() {
        return this.#cushionS;
    }

    // Note how much media, seconds, is ahead of the playback position.
    sample(nowMs, aheadS) {
        note(this.#slots, Math.floor(nowMs / SLOT_MS), SLOTS, aheadS, Math.min);
        const calm = nowMs - this.#stalledMs > CALM_MS;
        if (calm && this.#cushionS > BASE_S && nowMs - this.#shrunkMs >= 1000) {
            this.#shrunkMs = nowMs;
            this.#cushionS = Math.max(BASE_S, this.#cushionS - SHRINK_PER_S);
        }
    }

    // Note that media up to a time, seconds, has come.
    arrived(nowMs, endS) {
        note(this.#edges, Math.floor(nowMs / EDGE_SLOT_MS), EDGE_SLOTS, endS - nowMs / 1000, Math.max);
    }

    // Return how far a position is behind the live edge, seconds: behind where media would be that came as fast as the fastest
    // lately. What all of it takes from the encoder to the page is not in it.
    behind(nowMs, position) {
        return this.#edges.length === 0 ? 0 : Math.max(0, Math.max(...this.#edges.map(([, most]) => most)) + nowMs / 1000 - position);
    }

    // Forget everything of the media before: other media begins.
    begin() {
        this.#edges = [];
        this.moved();
    }

    // Forget the samples: the playback position has changed.
    moved() {
        this.#slots = [];
        this.#correcting = false;
    }

    // Note that playback has stalled for some time since there was no media, and goes on.
    stalled(nowMs, durationS) {
        if (durationS < OUTAGE_S) {
            this.#stalledMs = nowMs;
            this.#cushionS = Math.min(MOST_S, this.#cushionS + durationS + STALL_STEP_S);
        }
    }

    // Whether media should be skipped.
    isFarBehind(aheadS) {
        return aheadS > this.#cushionS + JUMP_S;
    }

    // Return the speed at which to play.
    get rate() {
        if (this.#slots.length === 0) {
            return 1;
        }
        const error = Math.min(...this.#slots.map(([, aheadS]) => aheadS)) - this.#cushionS;
        this.#correcting = Math.abs(error) > (this.#correcting ? SETTLED_S : TOLERANCE_S);
        if (!this.#correcting) {
            return 1;
        }
        const speed = 1 + Math.sign(error) * Math.max(1 / STEPS, Math.abs(error) * GAIN);
        return Math.round(Math.min(FASTEST, Math.max(SLOWEST, speed)) * STEPS) / STEPS;
    }
}

// Add a value to a window of slots, each of which has the least or the most of its values.
function note(slots, number, limit, value, choose) {
    const last = slots.at(-1);
    if (last?.[0] === number) {
        last[1] = choose(last[1], value);
    } else {
        slots.push([number, value]);
    }
    while (slots[0][0] <= number - limit) {
        slots.shift();
    }
}
