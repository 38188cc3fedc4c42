// Looks at the status page with Chromium: on a desktop and a phone, in light and dark, with
// and without scripts. Prints what is wrong, a line each, and then exits with 1.
//
// Its argument is JSON: url; words, which must be visible; reloads, whether to wait until
// the page has loaded itself again; shots, a list of {file, width, dark}, which are taken.
import { execFileSync } from "node:child_process";
import { chromium } from "playwright-core";

const patience = 120_000; // ms; a busy machine takes long to start and to paint
const asked = JSON.parse(process.argv[2]);
const problems = [];

// measure runs in the page.
function measure() {
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const channels = (color) => color.match(/[\d.]+/g).map(Number);
  const background = (element) => {
    for (; element; element = element.parentElement) {
      const color = channels(getComputedStyle(element).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const outside = [], faint = [];
  for (const element of document.body.querySelectorAll("*")) {
    const box = element.getBoundingClientRect();
    if (box.right > innerWidth + 0.5 || box.left < -0.5) outside.push(element.className || element.tagName);
    if (![...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim())) continue;
    const [a, b] = [channels(getComputedStyle(element).color), background(element)].map(luminance);
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) faint.push(`${element.className || element.tagName} ${contrast.toFixed(2)}`);
  }
  return {
    text: document.body.innerText.replace(/\s+/g, " "),
    wide: document.documentElement.scrollWidth > innerWidth,
    outside, faint,
    height: document.documentElement.scrollHeight,
    background: getComputedStyle(document.body).backgroundColor,
    styled: getComputedStyle(document.querySelector("h1")).borderLeftWidth,
  };
}

const executablePath = execFileSync("which", ["chromium"], { encoding: "utf8" }).trim();
const browser = await chromium.launch({ executablePath, timeout: patience, args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"] });

// look opens the page once and returns its background color.
async function look(width, dark, scripts) {
  const name = `${width} px, ${dark ? "dark" : "light"}, ${scripts ? "with" : "without"} scripts`;
  const wrong = (text) => problems.push(`${name}: ${text}`);
  const context = await browser.newContext({ viewport: { width, height: 800 }, colorScheme: dark ? "dark" : "light", javaScriptEnabled: scripts });
  const page = await context.newPage();
  page.setDefaultTimeout(patience);
  page.on("console", (message) => wrong(`the console says: ${message.text()}`));
  page.on("pageerror", (error) => wrong(`an error: ${error}`));
  page.on("request", (request) => { if (request.url() !== asked.url && !request.url().startsWith("data:")) wrong(`the page loads ${request.url()}`); });
  page.on("requestfailed", (request) => wrong(`${request.url()} failed: ${request.failure().errorText}`));
  const response = await page.goto(asked.url);
  if (response.status() !== 200) wrong(`status ${response.status()}`);
  const seen = await page.evaluate(measure);
  for (const word of asked.words) if (!seen.text.includes(word)) wrong(`${JSON.stringify(word)} is not visible in ${seen.text}`);
  if (seen.wide) wrong("the page scrolls horizontally");
  if (seen.outside.length) wrong(`outside the window: ${seen.outside}`);
  if (seen.faint.length) wrong(`too little contrast: ${seen.faint}`);
  if (seen.styled === "0px") wrong("the style sheet is not applied");
  for (const shot of asked.shots ?? []) {
    if (scripts && shot.width === width && shot.dark === dark) {
      const clip = { x: 0, y: 0, width, height: Math.min(seen.height, 860) };
      await page.screenshot({ path: shot.file, fullPage: true, clip });
    }
  }
  if (asked.reloads && !scripts && width === 1024) {
    await page.waitForRequest(asked.url).catch(() => wrong("the page does not load itself again"));
  }
  page.removeAllListeners("requestfailed"); // it may be loading itself again
  await context.close();
  return seen.background;
}

try {
  for (const width of [1024, 390]) {
    const light = await look(width, false, true), dark = await look(width, true, true);
    if (light === dark) problems.push(`${width} px: dark looks like light: ${dark}`);
  }
  for (const width of [1024, 320]) await look(width, false, false);
} finally {
  await browser.close();
}
console.log(problems.join("\n"));
process.exitCode = problems.length ? 1 : 0;
