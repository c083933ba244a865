"""The closed vocabulary of the simulated phone, in English and Chinese.

Every name is one word on the screen, one word in a task and one token of the built-in model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")


@dataclass(frozen=True, slots=True)
class Name:
    """What something is called; `key` is its name in code."""

    key: str
    en: str
    zh: str

    def in_(self, language: Language) -> str:
        """The name in this language."""
        return self.en if language == "en" else self.zh


def _names(table: str) -> dict[str, Name]:
    names = {}
    for row in table.strip().splitlines():
        key, en, zh = (part.strip() for part in row.split("|"))
        names[key] = Name(key, en, zh)
    return names


APPS = _names("""
    settings | Settings | 设置
    camera | Camera | 相机
    phone | Phone | 电话
    messages | Messages | 短信
    photos | Photos | 相册
    music | Music | 音乐
    maps | Maps | 地图
    clock | Clock | 时钟
    calendar | Calendar | 日历
    weather | Weather | 天气
    notes | Notes | 便签
    mail | Mail | 邮件
    browser | Browser | 浏览器
    calculator | Calculator | 计算器
    contacts | Contacts | 联系人
    files | Files | 文件
    store | Store | 商店
    video | Video | 视频
    wallet | Wallet | 钱包
    health | Health | 健康
    games | Games | 游戏
    books | Books | 图书
    recorder | Recorder | 录音机
    taxi | Taxi | 打车
""")
SEARCH_APPS = ("browser", "maps", "store", "video", "music", "books")

SWITCHES = _names("""
    wifi | Wi-Fi | 无线网络
    bluetooth | Bluetooth | 蓝牙
    airplane | Airplane | 飞行模式
    hotspot | Hotspot | 热点
    dark | Dark mode | 深色模式
    location | Location | 定位
    nfc | NFC | 近场通信
    quiet | Quiet mode | 勿扰
    saver | Power saver | 省电
    rotation | Rotation | 自动旋转
    torch | Flashlight | 手电筒
    updates | Updates | 自动更新
""")

BUTTONS = _names("""
    ok | OK | 确定
    cancel | Cancel | 取消
    allow | Allow | 允许
    deny | Deny | 拒绝
    agree | Agree | 同意
    later | Later | 稍后
""")
# The first one agrees, the second one leaves things as they are.
BUTTON_PAIRS = (("ok", "cancel"), ("allow", "deny"), ("agree", "later"))

WIDGETS = _names("""
    field | Search field | 搜索框
    go | Search button | 搜索按钮
""")

QUERIES = _names("""
    coffee | coffee | 咖啡
    pizza | pizza | 披萨
    hotel | hotel | 酒店
    cats | cats | 猫咪
    flowers | flowers | 鲜花
    shoes | shoes | 鞋子
    football | football | 足球
    recipes | recipes | 菜谱
    piano | piano | 钢琴
    train | train | 火车
    museum | museum | 博物馆
    history | history | 历史
""")

LAUNCHER = Name("launcher", "Home screen", "主屏幕")
ALL_NAMES = (*APPS.values(), *SWITCHES.values(), *BUTTONS.values(), *WIDGETS.values())


def app_title(key: str | None) -> Name:
    """The name of an app, or of the launcher for None."""
    return LAUNCHER if key is None else APPS[key]
