// Clips on the page. Until a clip is restored, a frame of it is looked at as a photo is; then both films play under the
// slider: the restored one leads, and the one before it is kept in step. page.js calls what is given back here.
window.fairweatherClips = (() => {
  "use strict";
  const OFTEN = 400, AWAY = 2000, FAR = 0.3, BEHIND = 0.06, NEAR = 0.015, MOST = 0.25;
  const AS_THEY_WERE = "with the settings as they were";
  let page, root, before, after, playing = null;

  const one = (selector, base = root) => base.querySelector(selector);
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
  const asked = (photo) => page.query(photo, page.state.strength).toString();
  const busy = (job) => Boolean(job) && !["done", "failed"].includes(job.state);
  const finished = (photo) => photo.job?.state === "done" && photo.job.asked === asked(photo);

  // What is downloaded of a photo: nothing of ours (undefined), nothing yet (null), or [address, name].
  function link(photo) {
    if (!photo?.found?.clip) return undefined;
    return photo.status === "ready" && finished(photo) ? [`/api/v1/clips/${photo.job.id}/result`, photo.job.download] : null;
  }

  // ---- restoring --------------------------------------------------------------------------------------------------

  async function film() {
    const photo = page.shown();
    if (!photo || photo.status !== "ready" || busy(photo.job)) return;
    forget(photo);
    const job = photo.job = { state: "asking", asked: asked(photo), frames: 0, total: photo.found.clip.frames };
    page.draw();
    one("[data-do=stop]").focus();
    const told = await page.ask(photo, "POST", `/page/photos/${photo.token}/clip?${job.asked}`);
    if (photo.job !== job) return unwanted(told);  // stopped meanwhile
    if (told && told !== "gone") {
      Object.assign(job, told);
      return watch(photo, job);
    }
    if (told === "gone") return lost(photo);
    photo.job = null;
    page.draw();
  }

  // The server was started again, or the clip's time is over: it is sent once more, and may then be restored.
  function lost(photo) {
    if (playing && playing === photo.job) unload();
    const job = { state: "failed", error: { message: "it had gone from the server; restore it once more" } };
    Object.assign(photo, { token: null, job, status: "waiting", said: "sending it again" });
    page.draw();
    page.next();
  }

  async function watch(photo, job) {
    while (photo.job === job && busy(job)) {
      await wait(OFTEN);
      const answer = await fetch(`/api/v1/clips/${job.id}`).catch(() => null);
      const told = answer && await answer.json().catch(() => null);
      if (photo.job !== job) return;
      if (answer?.status === 404) return lost(photo);
      job.away = !answer?.ok;
      if (job.away) await wait(AWAY);
      else Object.assign(job, told);
      if (busy(job) && photo === page.shown()) draw(photo);
    }
    if (photo.job !== job) return;
    page.say(job.state === "done" ? `${photo.name}: the clip is restored${finished(photo) ? "" : ` ${AS_THEY_WERE}`}` : job.error?.message || `${photo.name}: was stopped`);
    const focused = one(".fw-clip").contains(document.activeElement);
    page.draw();
    if (focused && photo === page.shown()) one(job.state === "done" ? "[data-do=play]" : "[data-do=film]").focus();
  }

  const drop = (id) => fetch(`/api/v1/clips/${id}`, { method: "DELETE", keepalive: true }).catch(() => null);

  // What the server has begun for a photo or clip that was removed meanwhile, or for a clip that was stopped.
  function unwanted(told) {
    if (told?.state) drop(told.id);
    else if (told?.token) fetch(`/page/photos/${told.token}`, { method: "DELETE" }).catch(() => null);
  }

  function forget(photo) {
    if (photo.job?.id) drop(photo.job.id);
    if (playing && playing === photo.job) unload();
    photo.job = null;
  }

  function stop() {
    const photo = page.shown();
    forget(photo);
    page.say(`${photo.name}: was stopped`);
    page.draw();
    one("[data-do=film]").focus();
  }

  // ---- what is drawn ----------------------------------------------------------------------------------------------

  function draw(photo) {
    if (!root) return;
    const clip = photo?.found?.clip, job = photo?.job, stage = one(".fw-stage");
    const ready = Boolean(clip) && photo.status === "ready";
    const plays = ready && finished(photo) && !page.state.map;
    one(".fw-clip").hidden = !clip || photo.status === "wrong";
    stage.classList.toggle("fw-plays", plays);
    plays ? load(job) : pause();
    if (!clip) return;
    one(".fw-clip-work").hidden = !busy(job);
    one(".fw-clip-play").hidden = !plays;
    one(".fw-clip-start").hidden = busy(job) || finished(photo);
    const nothing = ready && (!photo.found.parts.length || page.state.strength === 0), button = one("[data-do=film]");
    button.disabled = !ready || nothing;
    button.textContent = job ? "Restore the clip again" : "Restore the clip";
    const failed = job?.state === "failed" ? job.error?.message || "it was stopped" : "";
    const done = job?.state === "done" ? `it is restored ${AS_THEY_WERE}` : size(clip);
    const note = one(".fw-clip-start span");
    note.textContent = failed || (nothing ? "there is nothing to take out of it" : done);
    note.classList.toggle("fw-bad", Boolean(failed));
    if (busy(job)) work(photo, job);
  }

  const size = (clip) => [clip.frames ? `${clip.frames} frame${clip.frames === 1 ? "" : "s"}` : "", clip.seconds ? `${clip.seconds.toFixed(1)} s` : ""].filter(Boolean).join(", ");

  function work(photo, job) {
    const bar = one(".fw-clip-work progress"), parts = [];
    if (job.total) bar.value = Math.min(1, job.frames / job.total); else bar.removeAttribute("value");
    if (job.away) parts.push("the server does not answer; waiting for it");
    else if (job.state === "asking") parts.push(photo.said || "asking for a place");
    else if (job.state === "waiting") parts.push("waiting for its turn");
    else if (!job.frames) parts.push("beginning");
    else {
      parts.push(job.total ? `${job.frames} of ${job.total} frames` : `${job.frames} frames`);
      if (job.frames_a_second) parts.push(`${job.frames_a_second.toFixed(1)} a second`);
      if (job.seconds_left !== null) parts.push(`${clock(Math.ceil(job.seconds_left))} left`);
    }
    if (job.asked !== asked(photo)) parts.push(AS_THEY_WERE);
    one(".fw-clip-work span").textContent = parts.join(" · ");
  }

  // ---- playing ----------------------------------------------------------------------------------------------------

  function load(job) {
    if (playing === job) return;
    playing = job;
    one(".fw-stage").classList.remove("fw-rolling");
    before.src = `/page/clips/${job.id}/before`;
    after.src = `/page/clips/${job.id}/after`;
    sound(false);
    one("[data-do=mute]").hidden = !job.sound;
  }

  function unload() {  // nothing of the films stays in memory, and nothing more of them is fetched
    playing = null;
    pause();
    one(".fw-stage").classList.remove("fw-rolling");
    for (const video of [before, after]) { video.removeAttribute("src"); video.load(); }
  }

  function loaded() {  // both have a picture: until then the frame is seen
    if (!playing || before.readyState < 2 || after.readyState < 2 || one(".fw-stage").classList.contains("fw-rolling")) return;
    one(".fw-stage").classList.add("fw-rolling");
    one(".fw-seek").max = after.duration;
    place();
    if (one(".fw-stage").classList.contains("fw-plays") && !matchMedia("(prefers-reduced-motion: reduce)").matches) play();
  }

  function play() {
    before.currentTime = after.currentTime;
    Promise.all([after.play(), before.play()]).catch(() => null);
  }

  function pause() {
    after.pause();
    before.pause();
  }

  function toggle() {
    if (!playing || !one(".fw-stage").classList.contains("fw-plays")) return;
    after.paused ? play() : pause();
  }

  function seek(seconds) {
    after.currentTime = before.currentTime = seconds;
    place();
  }

  // Small differences are made up by speed, which is not seen; a jump is, and is for large ones. Where a machine is too
  // slow for two films, the one that leads waits.
  function step() {
    const apart = before.currentTime - after.currentTime;
    if (Math.abs(apart) > FAR) before.currentTime = after.currentTime;
    before.playbackRate = Math.abs(apart) < NEAR ? 1 : 1 + Math.min(MOST, Math.max(-MOST, -2 * apart));
    after.playbackRate = apart < -BEHIND ? 0.5 : 1;
    if (before.paused && !before.ended && !after.paused) before.play().catch(() => null);
    place();
    if (!after.paused) requestAnimationFrame(step);
  }

  function place() {
    const bar = one(".fw-seek"), now = after.currentTime, whole = after.duration || 0, told = `${clock(now)} of ${clock(Math.round(whole))}`;
    bar.value = now;
    bar.style.setProperty("--fw-at", `${whole ? 100 * now / whole : 0}%`);
    if (bar.getAttribute("aria-valuetext") !== told) bar.setAttribute("aria-valuetext", told);
    one(".fw-time").textContent = whole < 60 ? `${now.toFixed(1)} / ${whole.toFixed(1)} s` : `${clock(now)} / ${clock(whole)}`;
  }

  function state() {
    const paused = after.paused;
    one("[data-do=play]").setAttribute("aria-label", paused ? "Play" : "Pause");
    one(".fw-clip").classList.toggle("fw-paused", paused);
    if (paused) before.pause(); else requestAnimationFrame(step);
  }

  function sound(yes) {
    after.muted = !yes;
    one("[data-do=mute]").setAttribute("aria-pressed", yes);
    one(".fw-clip").classList.toggle("fw-heard", yes);
  }

  function broken() {
    if (!playing) return;
    const photo = page.state.photos.find((photo) => photo.job === playing);
    unload();
    if (!photo) return;
    fetch(`/api/v1/clips/${photo.job.id}`).then((answer) => {
      if (answer.status === 404) return lost(photo);
      page.say(`${photo.name}: cannot be played here; download it`);
    }).catch(() => null);
  }

  function keys(event) {
    if (event.key !== " " || event.target.closest("button, a, select, textarea, input:not(.fw-seek)")) return;
    if (!playing || !one(".fw-stage").classList.contains("fw-plays")) return;
    event.preventDefault();
    toggle();
  }

  function begin(element, given) {
    root = element;
    page = given;
    before = one(".fw-film-before");
    after = one(".fw-film-after");
    before.muted = after.muted = true;
    for (const video of [before, after]) {
      video.addEventListener("canplay", loaded);
      video.addEventListener("error", broken);
    }
    for (const name of ["play", "pause"]) after.addEventListener(name, state);
    after.addEventListener("seeked", place);
    after.addEventListener("waiting", () => before.pause());
    after.addEventListener("ended", () => { seek(0); play(); });
    one(".fw-seek").addEventListener("input", (event) => seek(Number(event.target.value)));
    document.addEventListener("keydown", keys);
    addEventListener("pagehide", (event) => {  // its name goes with the page: nobody could ask for it any more
      if (!event.persisted) page.state.photos.forEach((photo) => busy(photo.job) && forget(photo));
    });
  }

  return { begin, draw, link, remove: forget, unwanted, doings: { film, stop, play: toggle, mute: () => sound(after.muted) } };
})();
